#include "tiers/nvme/limited_engine.h"

#include <algorithm>
#include <thread>

namespace terrace::nvme {

namespace {

constexpr std::chrono::microseconds kLongestSleep{500};  // for a Wake() is not heard meanwhile

}  // namespace

void LimitedEngine::Take(bool wait, std::vector<IoOp*>& completed) {
  arrived_.clear();
  inner_->Poll(wait, arrived_);
  const Clock::time_point now = Clock::now();
  for (IoOp* op : arrived_) {
    if (op->kind != IoOp::Kind::kRead || op->result <= 0) {
      completed.push_back(op);
      continue;
    }
    const std::chrono::duration<double> moving(static_cast<double>(op->result) / read_bytes_per_s_);
    free_at_ = std::max(now, free_at_) + std::chrono::duration_cast<Clock::duration>(moving);
    held_.push_back({free_at_, op});
  }
  while (!held_.empty() && held_.front().due <= now) {
    completed.push_back(held_.front().op);
    held_.pop_front();
  }
}

void LimitedEngine::Poll(bool wait, std::vector<IoOp*>& completed) {
  while (true) {
    const bool blocks = wait && held_.empty();
    Take(blocks, completed);
    // What a blocking look at the inner engine ended with may have been a Wake().
    if (!wait || !completed.empty() || woken_.exchange(false) || held_.empty()) return;
    std::this_thread::sleep_until(std::min(held_.front().due, Clock::now() + kLongestSleep));
  }
}

void LimitedEngine::Wake() {
  woken_ = true;
  inner_->Wake();
}

}  // namespace terrace::nvme
