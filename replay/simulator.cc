#include "replay/simulator.h"

#include <utility>

namespace terrace::replay {
namespace {

// Names an object to policies as ObjectKey::Head64 does: evenly spread, never 0. The finaliser of
// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
uint64_t KeyHead(uint64_t key) {
  key += 0x9e3779b97f4a7c15u;
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
  key ^= key >> 31;
  return key != 0 ? key : 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Simulator>> Simulator::Create(const SimulatorOptions& options,
                                                             const PolicyMaker& make) {
  if (options.capacity == 0) return absl::InvalidArgumentError("capacity: 0; at least 1");
  std::unique_ptr<Simulator> simulator(new Simulator(options));
  auto policy = make({.capacity_bytes = options.capacity,
                      .now = [now = &simulator->now_] { return *now; },
                      .layers = options.layers,
                      .seed = options.seed,
                      .prefixes = options.semantics == Semantics::kPrefix});
  if (!policy.ok()) return policy.status();
  simulator->policy_ = *std::move(policy);
  return simulator;
}

absl::Status Simulator::Serve(const KnownRequest& request) {
  ++counts_.requests;
  now_ = request.first_access;
  for (const Sighting& sighting : request.sightings) {
    const PolicyId id = Find(sighting.key);
    if (id != kNoPolicyId) policy_->Hint(id, sighting.use, 1);
  }
  return options_.semantics == Semantics::kBlock ? ServeBlocks(request) : ServePrefix(request);
}

absl::Status Simulator::ServeBlocks(const KnownRequest& request) {
  const std::vector<Access>& accesses = request.request.accesses;
  wanted_.assign(accesses.size(), kNoPolicyId);
  for (size_t i = 0; i < accesses.size(); ++i) {
    const Access& access = accesses[i];
    now_ = request.first_access + i;
    PolicyId id = Find(access.key);
    Count(access, id != kNoPolicyId);
    if (id != kNoPolicyId) {
      policy_->Touch(id);
    } else {
      const uint64_t room = RoomFor(access);
      if (room > options_.capacity) {
        ++counts_.bypassed;
        continue;
      }
      if (absl::Status status = MakeRoom(room, 0); !status.ok()) return status;
      id = Enter(access.key, room);
      PolicyId parent = access.parent >= 0 ? wanted_[access.parent] : kNoPolicyId;
      // It may have left to make room for what is between the two.
      if (parent != kNoPolicyId && Find(accesses[access.parent].key) != parent) {
        parent = kNoPolicyId;
      }
      Track(id, access, parent);
    }
    wanted_[i] = id;
    Used(id, now_, request.next_uses[i]);
  }
  return absl::OkStatus();
}

absl::Status Simulator::ServePrefix(const KnownRequest& request) {
  const std::vector<Access>& accesses = request.request.accesses;
  CountPrefixHits(request.request);
  // As much of the request as fits, from the root on, stays or enters.
  enters_.assign(accesses.size(), false);
  size_t admitted = 0;
  uint64_t room = 0;
  for (; admitted < accesses.size(); ++admitted) {
    PolicyId& id = wanted_[admitted];
    id = Find(accesses[admitted].key);
    const bool again = id != kNoPolicyId && residents_[id].pinned_by == request.number + 1;
    if (!again) room += id != kNoPolicyId ? residents_[id].room : RoomFor(accesses[admitted]);
    if (room > options_.capacity) break;
    if (id == kNoPolicyId) {
      id = Enter(accesses[admitted].key, RoomFor(accesses[admitted]));
      enters_[admitted] = true;
    }
    residents_[id].pinned_by = request.number + 1;
  }
  counts_.bypassed += accesses.size() - admitted;
  return EnterPrefix(request, admitted);
}

void Simulator::CountPrefixHits(const Request& request) {
  wanted_.assign(request.accesses.size(), kNoPolicyId);
  hit_.assign(request.accesses.size(), false);
  for (size_t i = 0; i < request.accesses.size(); ++i) {
    const Access& access = request.accesses[i];
    hit_[i] = Find(access.key) != kNoPolicyId && (access.parent < 0 || hit_[access.parent]);
    Count(access, hit_[i]);
  }
}

absl::Status Simulator::EnterPrefix(const KnownRequest& request, size_t admitted) {
  const std::vector<Access>& accesses = request.request.accesses;
  for (size_t i = admitted; i-- > 0;) {
    const PolicyId id = wanted_[i];
    if (enters_[i]) {
      const uint64_t room = residents_[id].room;
      if (absl::Status s = MakeRoom(room, request.number + 1); !s.ok()) return s;
      const int32_t parent = accesses[i].parent;
      Track(id, accesses[i], parent >= 0 ? wanted_[parent] : kNoPolicyId);
    } else {
      policy_->Touch(id);
    }
    // One that is wanted twice is served once, last.
    uint64_t next_use = request.next_uses[i];
    while (next_use - request.first_access < accesses.size()) {
      next_use = request.next_uses[next_use - request.first_access];
    }
    Used(id, request.first_access + i, next_use);
  }
  return absl::OkStatus();
}

void Simulator::Count(const Access& access, bool hit) {
  ++counts_.accesses;
  counts_.size += access.size;
  if (!hit) return;
  ++counts_.hits;
  counts_.hit_size += access.size;
}

PolicyId Simulator::Find(uint64_t key) const {
  const auto found = ids_.find(key);
  return found != ids_.end() ? found->second : kNoPolicyId;
}

absl::Status Simulator::MakeRoom(uint64_t room, uint64_t pinned_by) {
  while (used_ + room > options_.capacity) {
    const auto victim = policy_->Evict(
        [&](PolicyId id) { return pinned_by == 0 || residents_[id].pinned_by != pinned_by; });
    if (!victim) return absl::InternalError("the policy evicts nothing, and the tier is full");
    const Resident& leaving = residents_[*victim];
    if (on_evict_) on_evict_(leaving.last_access);
    used_ -= leaving.room;
    ++counts_.evictions;
    ids_.erase(leaving.key);
    free_.push_back(*victim);
  }
  return absl::OkStatus();
}

// Gives the object an id. It is resident from Track on, but for Find.
PolicyId Simulator::Enter(uint64_t key, uint64_t room) {
  PolicyId id = static_cast<PolicyId>(residents_.size());
  if (free_.empty()) {
    residents_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  residents_[id] = {.key = key, .room = room};
  ids_.emplace(key, id);
  return id;
}

void Simulator::Track(PolicyId id, const Access& access, PolicyId parent) {
  used_ += residents_[id].room;
  policy_->Track(id, {.bytes = residents_[id].room,
                      .cost_us = access.cost_us,
                      .key_head = KeyHead(access.key),
                      .parent = parent,
                      .depth = access.depth,
                      .kind = access.kind});
}

void Simulator::Used(PolicyId id, uint64_t access, uint64_t next_use) {
  residents_[id].last_access = access;
  if (next_use != kUnknownUse) policy_->Hint(id, next_use, 1);
}

}  // namespace terrace::replay
