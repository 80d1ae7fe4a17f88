// An engine in front of another that keeps reads to a rate: for devices whose bandwidth is shared
// with others, and for measuring what a slower link would do. Requests reach the device at once and
// complete when a link of that rate would have moved their bytes, one after the other.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tiers/nvme/io_engine.h"

namespace terrace::nvme {

class LimitedEngine final : public IoEngine {
 public:
  // `read_bytes_per_s` is above 0.
  LimitedEngine(std::unique_ptr<IoEngine> inner, uint64_t read_bytes_per_s)
      : inner_(std::move(inner)), read_bytes_per_s_(static_cast<double>(read_bytes_per_s)) {}

  void Submit(IoOp* op) override { inner_->Submit(op); }
  void Poll(bool wait, std::vector<IoOp*>& completed) override;
  void Wake() override;
  std::string name() const override { return inner_->name() + ", limited"; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Held {
    Clock::time_point due;
    IoOp* op;
  };

  void Take(bool wait, std::vector<IoOp*>& completed);

  const std::unique_ptr<IoEngine> inner_;
  const double read_bytes_per_s_;
  std::vector<IoOp*> arrived_;
  std::deque<Held> held_;      // ascending
  Clock::time_point free_at_;  // when the link has moved all that was asked of it
  std::atomic<bool> woken_ = false;
};

}  // namespace terrace::nvme
