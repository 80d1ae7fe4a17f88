// An engine that does what FaultySystem says: part of it.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/faulty_system.h"

namespace terrace {

class FaultyEngine final : public nvme::IoEngine {
 public:
  FaultyEngine(FaultySystem& system, std::unique_ptr<nvme::IoEngine> inner)
      : system_(system), inner_(std::move(inner)) {}

  void Submit(nvme::IoOp* op) override;
  void Poll(bool wait, std::vector<nvme::IoOp*>& completed) override;
  void Wake() override;
  std::string name() const override { return inner_->name() + " with faults"; }

 private:
  using Clock = std::chrono::steady_clock;
  // What the inner engine gets of an operation.
  struct Proxy : nvme::IoOp {
    nvme::IoOp* original = nullptr;
    FaultySystem::Plan plan;
    Clock::time_point due;
    std::vector<iovec> shortened;
  };

  void SubmitDue();
  void Take(std::vector<nvme::IoOp*>& completed);

  FaultySystem& system_;
  const std::unique_ptr<nvme::IoEngine> inner_;
  std::vector<nvme::IoOp*> answered_;            // without the inner engine
  std::vector<std::unique_ptr<Proxy>> delayed_;  // not given to the inner engine yet
  std::vector<nvme::IoOp*> arrived_;             // proxies, from the inner engine
  std::atomic<bool> woken_ = false;
};

}  // namespace terrace
