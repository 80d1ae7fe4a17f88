#include "tiers/eviction/shadow_cache.h"

#include <optional>

namespace terrace {

bool ShadowCache::Use(const TrackInfo& info, uint64_t capacity) {
  if (const auto it = ids_.find(info.key_head); it != ids_.end()) {
    policy_->Touch(it->second);
    return true;
  }
  while (used_ + info.bytes > capacity) {
    const std::optional<PolicyId> victim = policy_->Evict([](PolicyId) { return true; });
    if (!victim) break;
    Free(*victim);
  }
  PolicyId id = static_cast<PolicyId>(objects_.size());
  if (free_.empty()) {
    objects_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  objects_[id] = {info.key_head, info.bytes};
  ids_[info.key_head] = id;
  used_ += info.bytes;
  TrackInfo alone = info;
  alone.parent = kNoPolicyId;  // its prefix need not be in the sample
  policy_->Track(id, alone);
  return false;
}

bool ShadowCache::Hint(uint64_t key_head, uint64_t next_use, float confidence) {
  const auto it = ids_.find(key_head);
  if (it == ids_.end()) return false;
  policy_->Hint(it->second, next_use, confidence);
  return true;
}

void ShadowCache::Drop(uint64_t key_head) {
  const auto it = ids_.find(key_head);
  if (it == ids_.end()) return;
  const PolicyId id = it->second;
  policy_->Forget(id);
  Free(id);
}

void ShadowCache::Retain(absl::FunctionRef<bool(uint64_t key_head)> keep) {
  std::vector<uint64_t> dropped;
  for (const auto& [key_head, id] : ids_) {
    if (!keep(key_head)) dropped.push_back(key_head);
  }
  for (uint64_t key_head : dropped) Drop(key_head);
}

void ShadowCache::Free(PolicyId id) {
  used_ -= objects_[id].bytes;
  ids_.erase(objects_[id].key_head);
  free_.push_back(id);
}

}  // namespace terrace
