#include "daemon/prefetch/return_rate.h"

namespace terrace {

void ReturnRate::Evicted(uint64_t key_head, size_t resident) {
  ghosts_[key_head] = ++evictions_;
  order_.emplace_back(key_head, evictions_);
  while (order_.size() > resident) {
    const auto [oldest, eviction] = order_.front();
    order_.pop_front();
    const auto ghost = ghosts_.find(oldest);
    if (ghost == ghosts_.end() || ghost->second != eviction) continue;  // it has returned
    ghosts_.erase(ghost);
    Judge(false);
  }
}

void ReturnRate::Demanded(uint64_t key_head) {
  if (ghosts_.erase(key_head) > 0) Judge(true);
}

void ReturnRate::Judge(bool returned) {
  constexpr double kRemembered = 1024;
  if (judged_ >= kRemembered) {
    judged_ /= 2;
    returned_ /= 2;
  }
  judged_ += 1;
  returned_ += returned ? 1 : 0;
}

}  // namespace terrace
