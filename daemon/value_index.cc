#include "daemon/value_index.h"

namespace terrace {

void ValueIndex::Appeared(const Entry& entry) { Note({entry.key, entry.payload_units}); }

void ValueIndex::Disappeared(const Entry& entry) { Note({entry.key, 0}); }

void ValueIndex::Note(const Change& change) {
  changes_.push_back(change);
  if (!keeping_back_) Apply();
}

void ValueIndex::Apply() {
  keeping_back_ = false;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const Change& change : changes_) {
    if (change.payload_units != 0) {
      payload_units_[change.key] = change.payload_units;
    } else {
      payload_units_.erase(change.key);
    }
  }
  changes_.clear();
}

std::optional<uint64_t> ValueIndex::Find(const ObjectKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = payload_units_.find(key);
  if (found == payload_units_.end()) return std::nullopt;
  return uint64_t{found->second} * kPartAlignment;
}

}  // namespace terrace
