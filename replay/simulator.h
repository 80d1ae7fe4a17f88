// One tier under one eviction policy, on a clock that counts accesses: the code of the daemon's
// policies, without its bytes. Memory grows with what is resident, not with the trace. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replay/request_source.h"
#include "tiers/eviction/policy.h"

namespace terrace::replay {

enum class Semantics : uint8_t {
  // Every access by itself, in order: a hit when its object is resident.
  kBlock,
  // A hit only when all of its prefix hit. What a request wants stays while it is served; the
  // deepest object is touched or enters first and the root last, and policies evict leaves first.
  kPrefix,
};

struct SimulatorOptions {
  Semantics semantics = Semantics::kBlock;
  uint64_t capacity = 0;
  bool capacity_in_objects = true;  // else in TraceInfo::unit
  uint32_t layers = 1;              // TraceInfo::layers
  uint64_t seed = 1;                // of randomised policies
};

struct Counts {
  uint64_t requests = 0, accesses = 0, hits = 0;
  uint64_t size = 0, hit_size = 0;  // in the trace's unit
  uint64_t evictions = 0;
  uint64_t bypassed = 0;  // accesses of what did not fit: alone, or (kPrefix) beside its prefix
};

using PolicyMaker =
    std::function<absl::StatusOr<std::unique_ptr<EvictionPolicy>>(const PolicyContext&)>;

class Simulator {
 public:
  // Fails as `make` does.
  static absl::StatusOr<std::unique_ptr<Simulator>> Create(const SimulatorOptions& options,
                                                           const PolicyMaker& make);

  // Internal when the policy has nothing to evict though the tier is full: a defect of the policy.
  absl::Status Serve(const KnownRequest& request);

  const Counts& counts() const { return counts_; }
  // Called with the number of the last access of each object that is evicted.
  void OnEvict(std::function<void(uint64_t last_access)> call) { on_evict_ = std::move(call); }

 private:
  struct Resident {
    uint64_t key = 0;
    uint64_t room = 0;         // that it takes of the capacity
    uint64_t last_access = 0;  // the number of
    uint64_t pinned_by = 0;    // 1 + the number of the last request that wanted it (kPrefix)
  };

  explicit Simulator(const SimulatorOptions& options) : options_(options) {}

  absl::Status ServeBlocks(const KnownRequest& request);
  absl::Status ServePrefix(const KnownRequest& request);
  void CountPrefixHits(const Request& request);
  absl::Status EnterPrefix(const KnownRequest& request, size_t admitted);
  void Count(const Access& access, bool hit);

  uint64_t RoomFor(const Access& access) const {
    return options_.capacity_in_objects ? 1 : access.size;
  }
  PolicyId Find(uint64_t key) const;
  absl::Status MakeRoom(uint64_t room, uint64_t pinned_by);
  PolicyId Enter(uint64_t key, uint64_t room);
  void Track(PolicyId id, const Access& access, PolicyId parent);
  void Used(PolicyId id, uint64_t access, uint64_t next_use);

  const SimulatorOptions options_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::function<void(uint64_t)> on_evict_;
  uint64_t now_ = 0, used_ = 0;
  Counts counts_;
  absl::flat_hash_map<uint64_t, PolicyId> ids_;  // of what is resident, by key
  std::vector<Resident> residents_;              // by id
  std::vector<PolicyId> free_;
  // Of the request that is served, by access; kept for their memory.
  std::vector<PolicyId> wanted_;
  std::vector<bool> hit_, enters_;
};

}  // namespace terrace::replay
