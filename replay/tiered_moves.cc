// What TieredStore moves without being asked, and what leaves for it.
#include <algorithm>

#include "replay/tiered_store.h"

namespace terrace::replay {

PrefetchLink TieredStore::StateOf(const VirtualLink& link) const {
  return {link.options().bytes_per_s, link.options().latency_us, link.Utilisation(now_),
          link.queued_bytes()};
}

std::optional<LinkPiece> TieredStore::NextToHbm() {
  if (windows_stale_) {
    windows_stale_ = false;
    const bool all_fit = lookahead_.uses() * largest_bytes_ <= options_.hbm_bytes;
    windows_ = all_fit
                   ? Lookahead::Windows{}
                   : lookahead_.ComputeWindows(
                         options_.hbm_bytes, options_.host_bytes, [this](uint64_t key) -> uint64_t {
                           const auto id = ids_.find(key);
                           return id != ids_.end() ? objects_[id->second].bytes : 0;
                         });
  }
  if (lookahead_.uses() == 0 && victims_.held() == 0 && bulk_.empty()) return std::nullopt;
  if (const auto piece = NextOfBucket()) return piece;
  const PrefetchLink link = StateOf(pcie_);
  const auto target = [&](uint64_t key) -> PrefetchTarget {
    const auto id = ids_.find(key);
    if (id == ids_.end()) return {};
    const Object& object = objects_[id->second];
    if (object.place != Place::kHost || object.to_hbm.active) return {};
    const uint64_t fetch = pcie_.TransferUs(object.bytes) + link.latency_us;
    const bool fits = hbm_used_ + object.bytes <= options_.hbm_bytes;
    return {object.bytes, fetch,
            fits ? 0 : static_cast<uint64_t>(hbm_returns_.rate() * static_cast<double>(fetch))};
  };
  while (const auto piece = to_hbm_.Next(link, windows_.prefetch_end, target)) {
    const PolicyId id = ids_.at(piece->key_head);
    Move& move = objects_[id].to_hbm;
    if (piece->offset == 0) {
      move.active = true;  // what goes down for it must not push it out of the host
      if (!MakeHbmRoom(piece->object_bytes, &*piece)) {
        move.active = false;
        to_hbm_.Refused(piece->key_head);
        continue;
      }
      BeginToHbm(id, /*has_room=*/true);
    }
    move.issued += piece->bytes;
    return LinkPiece{id, move.generation, piece->bytes, Traffic::kPrefetch};
  }
  return std::nullopt;
}

// The next piece of what the victim buffer sends up. What finds no room stays in the host.
std::optional<LinkPiece> TieredStore::NextOfBucket() {
  while (true) {
    if (bulk_.empty()) {
      auto bucket =
          victims_.TakeDue(now_, 1e6 / options_.pcie.bytes_per_s, options_.pcie.latency_us);
      if (!bucket) return std::nullopt;
      ++counts_.buckets;
      for (const VictimBuffer::Entry& entry : bucket->entries) {
        objects_[ids_.at(entry.key_head)].place = Place::kBulk;
        bulk_.push_back(entry);
      }
    }
    const PolicyId id = ids_.at(bulk_.front().key_head);
    Object& object = objects_[id];
    Move& move = object.to_hbm;
    if (!move.active) {
      const PrefetchPiece use{.key_head = object.key, .due = bulk_.front().due};
      if (lookahead_.StandingOf(object.key) != Lookahead::Standing::kAnnounced ||
          !MakeHbmRoom(object.bytes, &use)) {
        bulk_.pop_front();
        object.place = Place::kHost;
        TrackInMemory(id);
        continue;
      }
      BeginToHbm(id, /*has_room=*/true);
      object.by_bucket = true;
      ++counts_.bucket_objects;
    }
    const uint64_t bytes = std::min(options_.piece_bytes, object.bytes - move.issued);
    move.issued += bytes;
    if (move.issued == object.bytes) {
      bulk_.pop_front();
      object.place = Place::kHost;
      TrackInMemory(id);  // until it has landed
    }
    return LinkPiece{id, move.generation, bytes, Traffic::kPrefetch};
  }
}

std::optional<LinkPiece> TieredStore::NextToHost() {
  if (lookahead_.uses() == 0) return std::nullopt;
  const PrefetchLink link = StateOf(nvme_);
  const auto target = [&](uint64_t key) -> PrefetchTarget {
    const auto id = ids_.find(key);
    if (id == ids_.end()) return {};
    const Object& object = objects_[id->second];
    if (object.place != Place::kNvme || object.to_host.active || object.to_hbm.active) return {};
    const uint64_t fetch = nvme_.TransferUs(object.bytes) + link.latency_us;
    const bool fits = host_used_ + object.bytes <= options_.host_bytes;
    return {object.bytes, fetch,
            fits ? 0 : static_cast<uint64_t>(host_returns_.rate() * static_cast<double>(fetch))};
  };
  while (const auto piece = to_host_.Next(link, windows_.eviction_end, target)) {
    const PolicyId id = ids_.at(piece->key_head);
    Move& move = objects_[id].to_host;
    if (piece->offset == 0) {
      if (!MakeHostRoom(piece->object_bytes, &*piece)) {
        to_host_.Refused(piece->key_head);
        continue;
      }
      host_used_ += piece->object_bytes;
      move = {true, true, move.generation + 1, 0, 0};
    }
    move.issued += piece->bytes;
    return LinkPiece{id, move.generation, piece->bytes, Traffic::kPrefetch};
  }
  return std::nullopt;
}

void TieredStore::FreeCancelled() {
  for (const uint64_t key : to_hbm_.TakeCancelled()) {
    Object& object = objects_[ids_.at(key)];
    hbm_used_ -= object.bytes;
    object.to_hbm.active = object.to_hbm.has_room = false;
  }
  for (const uint64_t key : to_host_.TakeCancelled()) {
    Object& object = objects_[ids_.at(key)];
    host_used_ -= object.bytes;
    object.to_host.active = false;
  }
}

bool TieredStore::MayLeave(const Object& object, const PrefetchPiece* use) const {
  if (object.pinned_by == demand_ || object.to_hbm.active) return false;
  if (use == nullptr) return true;
  const auto next = lookahead_.NextUse(object.key);
  return !next || next->due > use->due;
}

bool TieredStore::MakeHbmRoom(uint64_t bytes, const PrefetchPiece* use) {
  if (bytes > options_.hbm_bytes) return false;
  while (hbm_used_ + bytes > options_.hbm_bytes) {
    const auto victim =
        hbm_policy_->Evict([&](PolicyId id) { return MayLeave(objects_[id], use); });
    if (!victim) return false;
    if (use != nullptr) {
      to_hbm_.Displaced(use->key_head, objects_[*victim].key,
                        pcie_.TransferUs(objects_[*victim].bytes) + options_.pcie.latency_us);
    }
    MoveDown(*victim);
  }
  hbm_used_ += bytes;
  return true;
}

bool TieredStore::MakeHostRoom(uint64_t bytes, const PrefetchPiece* use, PolicyId down) {
  if (bytes > options_.host_bytes) return false;
  while (host_used_ + bytes > options_.host_bytes) {
    const auto victim = memory_policy_->Evict([&](PolicyId id) {
      return id == down || (objects_[id].place == Place::kHost && MayLeave(objects_[id], use));
    });
    if (!victim) return false;
    Object& object = objects_[*victim];
    object.tracked_memory = false;
    if (*victim == down) return false;
    if (use != nullptr) {
      to_host_.Displaced(use->key_head, object.key,
                         nvme_.TransferUs(object.bytes) + options_.nvme.latency_us);
    }
    host_returns_.Evicted(object.key, std::max<size_t>(1, host_objects_));
    object.place = Place::kNvme;
    host_used_ -= object.bytes;
    --host_objects_;
    to_host_.Left(object.key);
  }
  return true;
}

// Out of HBM: into the victim buffer when it is wanted again, else to the host as the policy says.
void TieredStore::MoveDown(PolicyId id) {
  Object& object = objects_[id];
  hbm_returns_.Evicted(object.key, std::max<size_t>(1, hbm_objects_));
  hbm_used_ -= object.bytes;
  --hbm_objects_;
  object.tracked_hbm = false;
  object.by_bucket = false;
  object.place = Place::kNvme;
  to_hbm_.Left(object.key);
  if (!MakeHostRoom(object.bytes, nullptr, id)) {
    if (object.tracked_memory) memory_policy_->Forget(id);
    object.tracked_memory = false;
    return;
  }
  host_used_ += object.bytes;
  ++host_objects_;
  counts_.down_bytes += object.bytes;
  const auto use = lookahead_.NextUse(object.key);
  std::vector<VictimBuffer::Entry> dropped;
  if (use && use->due != kNeverUsed &&
      victims_.Put({object.key, object.bytes, use->due}, &dropped)) {
    object.place = Place::kVictim;
    ++counts_.victims;
  } else {
    object.place = Place::kHost;
    TrackInMemory(id);
  }
  for (const VictimBuffer::Entry& entry : dropped) {
    const PolicyId other = ids_.at(entry.key_head);
    objects_[other].place = Place::kHost;
    TrackInMemory(other);
  }
}

TrackInfo TieredStore::InfoOf(PolicyId id, bool Object::*tracked) const {
  TrackInfo info = objects_[id].info;
  const PolicyId parent = objects_[id].parent;
  if (parent != kNoPolicyId && objects_[parent].*tracked) info.parent = parent;
  return info;
}

void TieredStore::TrackInMemory(PolicyId id) {
  if (!objects_[id].tracked_memory) {
    objects_[id].tracked_memory = true;
    memory_policy_->Track(id, InfoOf(id, &Object::tracked_memory));
  }
  HintOf(id);
}

void TieredStore::TrackInHbm(PolicyId id) {
  objects_[id].tracked_hbm = true;
  hbm_policy_->Track(id, InfoOf(id, &Object::tracked_hbm));
  TrackInMemory(id);
}

}  // namespace terrace::replay
