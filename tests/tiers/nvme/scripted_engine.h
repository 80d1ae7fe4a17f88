// An engine that does to chosen operations what a test asks for, in front of a real one.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tiers/nvme/system.h"

namespace terrace::nvme {

// Shared by the test and the io thread; all methods may be called from any thread.
class Script {
 public:
  // An operation as the scheduler submitted it.
  struct Seen {
    IoOp::Kind kind = IoOp::Kind::kRead;
    int fd = -1;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint32_t writes_in_flight = 0;  // it included
    bool handed_over = false;       // Poll was called since
  };
  using Matches = std::function<bool(const IoOp&)>;
  // What to report instead of the truth, or nothing. A positive number moves its whole blocks.
  using Outcome = std::function<std::optional<int64_t>(const IoOp&)>;

  static bool Anything(const IoOp&) { return true; }
  static uint64_t Bytes(const IoOp& op) {
    uint64_t bytes = 0;
    for (int i = 0; i < op.buffer_count; ++i) bytes += op.buffers[i].iov_len;
    return bytes;
  }

  void SetOutcome(Outcome outcome) {
    std::lock_guard<std::mutex> lock(mutex_);
    outcome_ = std::move(outcome);
  }
  // Operations that match do not go to the device until released.
  void Hold(Matches matches) {
    std::lock_guard<std::mutex> lock(mutex_);
    hold_ = std::move(matches);
  }
  void Release(const Matches& matches) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto op = held_.begin(); op != held_.end();) {
      if (matches(**op)) {
        released_.push_back(*op);
        op = held_.erase(op);
      } else {
        ++op;
      }
    }
    if (engine_ != nullptr) engine_->Wake();
  }
  // Everything held, and nothing is held from here on.
  void ReleaseAll() {
    Hold(nullptr);
    Release(Anything);
  }

  std::vector<Seen> seen() {
    std::lock_guard<std::mutex> lock(mutex_);
    return seen_;
  }
  size_t Count(IoOp::Kind kind) {
    size_t count = 0;
    for (const Seen& one : seen()) count += one.kind == kind;
    return count;
  }
  // Waits until `count` operations were submitted; a failed test when they never are.
  std::vector<Seen> AwaitSeen(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return seen_.size() >= count; }))
        << seen_.size() << " operations of " << count;
    return seen_;
  }
  // Waits until the scheduler got `count` operations back.
  void AwaitDone(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return done_ >= count; }))
        << done_ << " operations of " << count;
  }

 private:
  friend class ScriptedEngine;

  std::mutex mutex_;
  std::condition_variable changed_;
  Outcome outcome_;
  Matches hold_;
  std::vector<IoOp*> held_, released_;
  std::vector<Seen> seen_;
  size_t done_ = 0;
  uint32_t writes_in_flight_ = 0;
  IoEngine* engine_ = nullptr;
};

class ScriptedEngine : public IoEngine {
 public:
  ScriptedEngine(std::unique_ptr<IoEngine> inner, Script& script)
      : inner_(std::move(inner)), script_(script) {
    std::lock_guard<std::mutex> lock(script_.mutex_);
    script_.engine_ = inner_.get();
  }
  ~ScriptedEngine() override {
    std::lock_guard<std::mutex> lock(script_.mutex_);
    script_.engine_ = nullptr;
  }

  void Submit(IoOp* op) override {
    std::lock_guard<std::mutex> lock(script_.mutex_);
    script_.writes_in_flight_ += op->kind == IoOp::Kind::kWrite;
    script_.seen_.push_back(
        {op->kind, op->fd, op->offset, Script::Bytes(*op), script_.writes_in_flight_, false});
    script_.changed_.notify_all();
    if (script_.hold_ && script_.hold_(*op)) {
      script_.held_.push_back(op);
    } else {
      script_.released_.push_back(op);
    }
  }

  void Poll(bool wait, std::vector<IoOp*>& completed) override {
    const size_t before = completed.size();
    {
      std::lock_guard<std::mutex> lock(script_.mutex_);
      for (Script::Seen& one : script_.seen_) one.handed_over = true;
      for (IoOp* op : std::exchange(script_.released_, {})) Begin(op, completed);
    }
    std::vector<IoOp*> done;
    inner_->Poll(wait && completed.size() == before, done);
    for (IoOp* op : done) completed.push_back(Restore(op));
    std::lock_guard<std::mutex> lock(script_.mutex_);
    script_.done_ += completed.size() - before;
    script_.changed_.notify_all();
    for (size_t i = before; i < completed.size(); ++i) {
      script_.writes_in_flight_ -= completed[i]->kind == IoOp::Kind::kWrite;
    }
  }

  void Wake() override { inner_->Wake(); }
  std::string name() const override { return inner_->name(); }

 private:
  // The first blocks of another operation.
  struct Shortened {
    IoOp op;
    std::vector<iovec> buffers;
    IoOp* original = nullptr;
    int64_t result = 0;
  };

  void Begin(IoOp* op, std::vector<IoOp*>& completed) {
    const std::optional<int64_t> result =
        script_.outcome_ ? script_.outcome_(*op) : std::optional<int64_t>();
    if (!result.has_value()) {
      inner_->Submit(op);
      return;
    }
    uint64_t left = *result > 0 ? static_cast<uint64_t>(*result) / 4096 * 4096 : 0;
    if (left == 0) {
      op->result = *result;
      completed.push_back(op);
      return;
    }
    auto shortened = std::make_unique<Shortened>();
    shortened->op = *op;
    shortened->original = op;
    shortened->result = *result;
    for (int i = 0; i < op->buffer_count && left > 0; ++i) {
      const uint64_t bytes = std::min<uint64_t>(left, op->buffers[i].iov_len);
      shortened->buffers.push_back({op->buffers[i].iov_base, bytes});
      left -= bytes;
    }
    shortened->op.buffers = shortened->buffers.data();
    shortened->op.buffer_count = static_cast<int>(shortened->buffers.size());
    inner_->Submit(&shortened->op);
    shortened_.push_back(std::move(shortened));
  }

  IoOp* Restore(IoOp* op) {
    auto found = std::find_if(shortened_.begin(), shortened_.end(),
                              [op](const auto& one) { return &one->op == op; });
    if (found == shortened_.end()) return op;
    IoOp* original = (*found)->original;
    original->result = op->result < 0 ? op->result : (*found)->result;
    shortened_.erase(found);
    return original;
  }

  const std::unique_ptr<IoEngine> inner_;
  Script& script_;
  std::vector<std::unique_ptr<Shortened>> shortened_;
};

class ScriptedSystem : public System {
 public:
  absl::StatusOr<std::unique_ptr<IoEngine>> MakeEngine(EngineChoice choice,
                                                       uint32_t depth) override {
    auto engine = System::MakeEngine(choice, depth);
    if (!engine.ok()) return engine.status();
    return std::make_unique<ScriptedEngine>(*std::move(engine), script);
  }

  Script script;
};

}  // namespace terrace::nvme
