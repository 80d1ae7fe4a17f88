#include "tests/support/faulty_engine.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace terrace {

namespace {

using nvme::IoOp;

std::string Label(IoOp::Kind kind, const char* when) {
  const char* name = kind == IoOp::Kind::kRead    ? "engine.read"
                     : kind == IoOp::Kind::kWrite ? "engine.write"
                                                  : "engine.sync";
  return std::string(name) + when;
}

}  // namespace

void FaultyEngine::Submit(IoOp* op) {
  system_.Step(Label(op->kind, ".submit").c_str());
  uint64_t bytes = 0;
  for (int i = 0; i < op->buffer_count; ++i) bytes += op->buffers[i].iov_len;
  FaultySystem::Plan plan = system_.PlanOp(*op, bytes);
  if (plan.answered) {
    op->result = plan.result;
    answered_.push_back(op);
    return;
  }
  auto proxy = std::make_unique<Proxy>();
  static_cast<IoOp&>(*proxy) = *op;
  proxy->original = op;
  proxy->plan = plan;
  proxy->due = Clock::now() + plan.delay;
  if (plan.limit < bytes) {
    uint64_t left = plan.limit;
    for (int i = 0; i < op->buffer_count && left > 0; ++i) {
      proxy->shortened.push_back(
          {op->buffers[i].iov_base, std::min<uint64_t>(left, op->buffers[i].iov_len)});
      left -= proxy->shortened.back().iov_len;
    }
    proxy->buffers = proxy->shortened.data();
    proxy->buffer_count = static_cast<int>(proxy->shortened.size());
  }
  if (plan.delay.count() > 0) {
    delayed_.push_back(std::move(proxy));
  } else {
    inner_->Submit(proxy.release());  // comes back in Take
  }
}

void FaultyEngine::SubmitDue() {
  const auto now = Clock::now();
  for (auto& proxy : delayed_) {
    if (proxy->due <= now) inner_->Submit(proxy.release());
  }
  std::erase(delayed_, nullptr);
}

void FaultyEngine::Poll(bool wait, std::vector<IoOp*>& completed) {
  SubmitDue();
  inner_->Poll(wait && answered_.empty() && delayed_.empty(), arrived_);
  // The inner engine knows nothing of what is delayed.
  while (wait && answered_.empty() && arrived_.empty() && !delayed_.empty() && !woken_) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    SubmitDue();
    inner_->Poll(false, arrived_);
  }
  if (wait) woken_ = false;
  Take(completed);
}

void FaultyEngine::Take(std::vector<IoOp*>& completed) {
  for (IoOp* op : std::exchange(arrived_, {})) {
    std::unique_ptr<Proxy> proxy(static_cast<Proxy*>(op));
    system_.OpEnded(*proxy, proxy->plan, proxy->result);
    IoOp* original = proxy->original;
    original->result = proxy->result;
    if (proxy->result > 0) {
      original->result -= std::min<int64_t>(proxy->result - 1, proxy->plan.hidden);
    }
    completed.push_back(original);
    system_.Step(Label(original->kind, ".done").c_str());
  }
  for (IoOp* op : std::exchange(answered_, {})) {
    completed.push_back(op);
    system_.Step(Label(op->kind, ".done").c_str());
  }
}

void FaultyEngine::Wake() {
  woken_ = true;
  inner_->Wake();
}

}  // namespace terrace
