#include "replay/tiered_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tiers/eviction/registry.h"

namespace terrace::replay {

namespace {

constexpr uint64_t kReviewUs = 50'000;

LookaheadOptions LookaheadOf() {
  LookaheadOptions options;
  options.max_uses = size_t{1} << 22;
  return options;
}

PrefetchOptions PrefetchOf(const TieredStoreOptions& options, uint64_t tier_bytes) {
  PrefetchOptions prefetch;
  prefetch.trial_bytes =
      std::min(prefetch.trial_bytes, std::max(tier_bytes / 8, 4 * options.piece_bytes));
  prefetch.piece_bytes = options.piece_bytes;
  prefetch.review_us = kReviewUs;
  return prefetch;
}

}  // namespace

TieredStore::TieredStore(const TieredStoreOptions& options)
    : options_(options),
      pcie_(options.pcie, options.piece_bytes),
      nvme_(options.nvme, options.piece_bytes),
      lookahead_(LookaheadOf(), [this] { return now_; }),
      to_hbm_(PrefetchOf(options, options.hbm_bytes), &lookahead_, [this] { return now_; }),
      to_host_(PrefetchOf(options, options.host_bytes), &lookahead_, [this] { return now_; }),
      victims_(
          {static_cast<uint64_t>(options.victim_share * static_cast<double>(options.host_bytes)),
           std::max<uint64_t>(1, options.bucket_us)}) {}

absl::StatusOr<std::unique_ptr<TieredStore>> TieredStore::Create(
    const TieredStoreOptions& options) {
  std::unique_ptr<TieredStore> store(new TieredStore(options));
  PolicyContext context;
  context.now = [store = store.get()] { return store->now_; };
  context.layers = options.layers;
  context.seed = options.seed;
  context.prefixes = options.prefixes;
  context.capacity_bytes = options.hbm_bytes;
  auto hbm = NewPolicy(options.policy, context);
  if (!hbm.ok()) return hbm.status();
  context.capacity_bytes = options.hbm_bytes + options.host_bytes;
  auto memory = NewPolicy(options.policy, context);
  if (!memory.ok()) return memory.status();
  store->hbm_policy_ = *std::move(hbm);
  store->memory_policy_ = *std::move(memory);
  return store;
}

// --- The clock and the links ---

void TieredStore::Schedule(uint64_t time, EventKind kind, const LinkPiece& piece) {
  events_.push({time, next_event_++, kind, piece});
}

void TieredStore::RunUntil(uint64_t time) {
  while (!events_.empty() && events_.top().time <= time) RunOne();
  now_ = std::max(now_, time);
}

void TieredStore::RunOne() {
  const Event event = events_.top();
  events_.pop();
  now_ = std::max(now_, event.time);
  switch (event.kind) {
    case EventKind::kPcieFree:
      pcie_.End();
      break;
    case EventKind::kNvmeFree:
      nvme_.End();
      break;
    case EventKind::kPcieLanded:
      LandedInHbm(event.piece);
      break;
    case EventKind::kNvmeLanded:
      LandedInHost(event.piece);
      break;
    case EventKind::kBucket:
      bucket_scheduled_ = 0;
      break;
    case EventKind::kReview:
      review_scheduled_ = false;
      FreeCancelled();
      ScheduleReview();
      break;
  }
  Pump();
}

void TieredStore::Pump() {
  if (const auto begun = pcie_.Begin(now_, [this] { return NextToHbm(); })) {
    Schedule(begun->free_at, EventKind::kPcieFree);
    Schedule(begun->lands_at, EventKind::kPcieLanded, begun->piece);
  }
  ScheduleBucket();
  if (const auto begun = nvme_.Begin(now_, [this] { return NextToHost(); })) {
    Schedule(begun->free_at, EventKind::kNvmeFree);
    if (begun->piece.traffic != Traffic::kWrite) {
      Schedule(begun->lands_at, EventKind::kNvmeLanded, begun->piece);
    }
  }
}

void TieredStore::ScheduleReview() {
  if (review_scheduled_ || (lookahead_.uses() == 0 && victims_.held() == 0)) return;
  review_scheduled_ = true;
  Schedule(now_ + kReviewUs, EventKind::kReview);
}

void TieredStore::ScheduleBucket() {
  const auto at = victims_.NextMove(1e6 / options_.pcie.bytes_per_s, options_.pcie.latency_us);
  // One that is late waits for the link, which wakes us when it is free.
  if (!at || *at <= now_ || (bucket_scheduled_ != 0 && bucket_scheduled_ <= *at)) return;
  bucket_scheduled_ = *at;
  Schedule(*at, EventKind::kBucket);
}

// --- What engines say ---

absl::Status TieredStore::Announce(const Announcement& announcement) {
  if (absl::Status status = lookahead_.Announce(announcement); !status.ok()) return status;
  for (const AnnouncedKey& key : announcement.keys) {
    if (const auto id = ids_.find(key.key_head); id != ids_.end()) HintOf(id->second);
  }
  windows_stale_ = true;
  ScheduleReview();
  Pump();
  return absl::OkStatus();
}

void TieredStore::Started(uint64_t request, absl::Span<const AnnouncedKey> keys) {
  lookahead_.Started(request);
  for (const AnnouncedKey& key : keys) {
    if (const auto id = ids_.find(key.key_head); id != ids_.end()) HintOf(id->second);
  }
  windows_stale_ = true;
}

void TieredStore::HintOf(PolicyId id) {
  const Object& object = objects_[id];
  const auto use = lookahead_.NextUse(object.key);
  const uint64_t due = use ? use->due : kUnknownUse;
  const float confidence = use ? use->probability : 0;
  if (object.tracked_hbm) hbm_policy_->Hint(id, due, confidence);
  if (object.tracked_memory) memory_policy_->Hint(id, due, confidence);
  if (object.place == Place::kVictim && use) victims_.Reschedule(object.key, due);
}

// --- Demand ---

PolicyId TieredStore::Find(const Access& access, PolicyId parent) {
  const auto [found, is_new] = ids_.try_emplace(access.key, static_cast<PolicyId>(objects_.size()));
  if (is_new) {
    Object& object = objects_.emplace_back();
    object.key = access.key;
    object.size = access.size;
    object.bytes = std::max<uint64_t>(
        1, static_cast<uint64_t>(static_cast<double>(access.size) * options_.unit_bytes));
    largest_bytes_ = std::max(largest_bytes_, object.bytes);
    object.info = {object.bytes, access.cost_us, access.key,
                   kNoPolicyId,  access.depth,   access.kind};
    object.parent = parent;
  }
  return found->second;
}

absl::StatusOr<uint64_t> TieredStore::Demand(absl::Span<const Access> accesses) {
  ++demand_;
  const uint64_t begin = now_;
  std::vector<PolicyId> ids;
  for (const Access& access : accesses) {
    const PolicyId parent = access.parent >= 0 ? ids[access.parent] : kNoPolicyId;
    ids.push_back(Find(access, parent));
    objects_[ids.back()].pinned_by = demand_;
  }
  uint64_t found = 0;
  for (const PolicyId id : ids) {
    found += objects_[id].place != Place::kNowhere ? objects_[id].size : 0;
    DemandOne(id);
  }
  Pump();
  while (waiting_ > 0) {
    if (events_.empty()) {
      return absl::InternalError(absl::StrCat("at ", now_, " us, ", waiting_,
                                              " objects are waited for and nothing moves"));
    }
    RunOne();
  }
  counts_.stall_us += now_ - begin;
  return found;
}

void TieredStore::DemandOne(PolicyId id) {
  Object& object = objects_[id];
  ++counts_.accesses;
  lookahead_.Used(object.key);
  hbm_returns_.Demanded(object.key);
  const bool on_its_way = object.to_hbm.active;
  to_hbm_.Demand(object.key);
  if (object.place == Place::kHbm) {
    ++counts_.hbm;
    counts_.bucket_timely += object.by_bucket ? 1 : 0;
    object.by_bucket = false;
    to_host_.Demand(object.key);
    return;
  }
  const bool has_room_to_come = object.place == Place::kNowhere && object.to_hbm.has_room;
  if (object.waited_for || has_room_to_come) return;  // named twice
  if (on_its_way) {
    ++counts_.joined;
    counts_.bucket_late += object.by_bucket ? 1 : 0;
    object.by_bucket = false;
    object.waited_for = true;
    ++waiting_;
    if (object.place == Place::kBulk) {
      bulk_.pop_front();  // the only one of the bucket that moves
      object.place = Place::kHost;
      TrackInMemory(id);
    }
    pcie_.Demand(id, object.to_hbm.generation, object.bytes - object.to_hbm.issued);
    object.to_hbm.issued = object.bytes;
    return;
  }
  const bool has_room = MakeHbmRoom(object.bytes, nullptr);
  counts_.bypassed += has_room ? 0 : 1;
  if (object.place == Place::kNowhere) {
    ++counts_.created;
    object.to_hbm.has_room = has_room;
    to_host_.Demand(object.key);
    return;
  }
  object.waited_for = true;
  ++waiting_;
  BeginToHbm(id, has_room);
  if (object.place == Place::kNvme) {
    DemandFromNvme(id);
    return;
  }
  ++counts_.host;
  if (object.place == Place::kVictim) victims_.Take(object.key);
  if (object.place == Place::kBulk) {
    std::erase_if(bulk_, [&](const auto& entry) { return entry.key_head == object.key; });
  }
  if (object.place != Place::kHost) {
    object.place = Place::kHost;
    TrackInMemory(id);
  }
  to_host_.Demand(object.key);
  object.to_hbm.issued = object.bytes;
  pcie_.Demand(id, object.to_hbm.generation, object.bytes);
}

// Pieces go up as they land in the host.
void TieredStore::DemandFromNvme(PolicyId id) {
  Object& object = objects_[id];
  ++counts_.nvme;
  host_returns_.Demanded(object.key);
  to_host_.Demand(object.key);
  if (!object.to_host.active) object.to_host = {true, false, object.to_host.generation + 1, 0, 0};
  pcie_.Demand(id, object.to_hbm.generation, object.to_host.landed);
  object.to_hbm.issued = object.to_host.landed;
  nvme_.Demand(id, object.to_host.generation, object.bytes - object.to_host.issued);
  object.to_host.issued = object.bytes;
}

void TieredStore::BeginToHbm(PolicyId id, bool has_room) {
  Move& move = objects_[id].to_hbm;
  move = {true, has_room, move.generation + 1, 0, 0};
}

void TieredStore::LandedInHost(const LinkPiece& piece) {
  Object& object = objects_[piece.id];
  Move& move = object.to_host;
  if (!move.active || move.generation != piece.generation) return;  // cancelled
  move.landed += piece.bytes;
  if (piece.traffic == Traffic::kPrefetch) to_host_.Arrived(object.key, piece.bytes);
  if (object.waited_for) {
    pcie_.Demand(piece.id, object.to_hbm.generation, piece.bytes);
    object.to_hbm.issued += piece.bytes;
    return;
  }
  if (move.landed < object.bytes) return;
  move.active = false;
  object.place = Place::kHost;
  ++host_objects_;
  TrackInMemory(piece.id);
  to_hbm_.Appeared(object.key);
}

void TieredStore::LandedInHbm(const LinkPiece& piece) {
  Object& object = objects_[piece.id];
  Move& move = object.to_hbm;
  if (!move.active || move.generation != piece.generation) return;  // cancelled
  move.landed += piece.bytes;
  if (piece.traffic == Traffic::kPrefetch) to_hbm_.Arrived(object.key, piece.bytes);
  if (move.landed < object.bytes) return;
  move.active = false;
  if (object.waited_for) --waiting_;
  const bool prefetched = !object.waited_for;
  object.waited_for = false;
  if (object.to_host.active) {  // came from NVMe, through room in the host if it had some
    if (object.to_host.has_room) host_used_ -= object.bytes;
    object.to_host.active = false;
  }
  if (!move.has_room) return;  // used from where it is
  if (object.place != Place::kNvme) LeaveHost(piece.id);
  EnterHbm(piece.id);
  if (prefetched) TrackInHbm(piece.id);
}

void TieredStore::EnterHbm(PolicyId id) {
  Object& object = objects_[id];
  object.to_hbm.has_room = false;  // the room is the object's now
  object.place = Place::kHbm;
  ++hbm_objects_;
}

void TieredStore::LeaveHost(PolicyId id) {
  Object& object = objects_[id];
  host_used_ -= object.bytes;
  --host_objects_;
  to_host_.Demand(object.key);  // going up is what it was brought for
}

void TieredStore::Finish(absl::Span<const Access> accesses) {
  for (size_t i = accesses.size(); i-- > 0;) {  // of a prefix, the deepest first
    const PolicyId id = ids_.at(accesses[i].key);
    Object& object = objects_[id];
    if (object.place == Place::kNowhere) {
      nvme_.Write(object.bytes);
      object.place = Place::kNvme;
      if (object.to_hbm.has_room) EnterHbm(id);
    }
    if (object.tracked_memory) memory_policy_->Touch(id);
    if (object.place == Place::kHbm && !object.tracked_hbm) {
      TrackInHbm(id);
    } else {
      if (object.tracked_hbm) hbm_policy_->Touch(id);
      HintOf(id);
    }
  }
  ++demand_;  // unpins
  Pump();
}

absl::Status TieredStore::CheckBytes() const {
  uint64_t hbm = 0, host = 0, bulk = 0, victims = 0;
  for (const Object& object : objects_) {
    if (object.place == Place::kHbm || object.to_hbm.has_room) hbm += object.bytes;
    const bool in_host = object.place == Place::kHost || object.place == Place::kVictim ||
                         object.place == Place::kBulk;
    if (in_host || (object.to_host.active && object.to_host.has_room)) host += object.bytes;
    bulk += object.place == Place::kBulk ? 1 : 0;
    victims += object.place == Place::kVictim ? object.bytes : 0;
  }
  if (hbm != hbm_used_ || host != host_used_ || hbm > options_.hbm_bytes ||
      host > options_.host_bytes || victims != victims_.held_bytes() || bulk != bulk_.size()) {
    return absl::InternalError(absl::StrCat(
        "HBM: ", hbm, " bytes of ", options_.hbm_bytes, ", counted ", hbm_used_, "; host: ", host,
        " of ", options_.host_bytes, ", counted ", host_used_, "; victims: ", victims, ", counted ",
        victims_.held_bytes(), "; bulk: ", bulk, ", queued ", bulk_.size()));
  }
  return absl::OkStatus();
}

}  // namespace terrace::replay
