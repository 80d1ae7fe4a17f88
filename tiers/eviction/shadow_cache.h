// A cache without contents: what a policy would have kept of a sample of the objects.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "tiers/eviction/policy.h"

namespace terrace {

class ShadowCache {
 public:
  explicit ShadowCache(std::unique_ptr<EvictionPolicy> policy) : policy_(std::move(policy)) {}

  // The object is used; what was not here is from now on, and others leave until all that is here
  // fits into `capacity` bytes. True: it was here. The object is named by its info's key_head.
  bool Use(const TrackInfo& info, uint64_t capacity);
  // It is known to be wanted at that time. True: it is here.
  bool Hint(uint64_t key_head, uint64_t next_use, float confidence);
  // It does not exist any more.
  void Drop(uint64_t key_head);
  // Drops all that is not kept. O(n).
  void Retain(absl::FunctionRef<bool(uint64_t key_head)> keep);

 private:
  struct Object {
    uint64_t key_head, bytes;
  };

  void Free(PolicyId id);

  std::unique_ptr<EvictionPolicy> policy_;
  absl::flat_hash_map<uint64_t, PolicyId> ids_;
  std::vector<Object> objects_;  // by id
  std::vector<PolicyId> free_;
  uint64_t used_ = 0;
};

}  // namespace terrace
