// The KJ half of Loop. Private to transport/.
#pragma once

#include <kj/async-io.h>
#include <kj/async-unix.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "transport/loop.h"

namespace terrace {

struct Loop::Impl final : private kj::TaskSet::ErrorHandler {
  Impl();
  ~Impl();

  void Post(absl::AnyInvocable<void()> closure);
  kj::Promise<void> WatchPosts();
  void RunPosted() noexcept;  // an exception in a posted closure is a bug: terminate
  kj::Promise<void> Tick(uint64_t period_ms, std::shared_ptr<std::function<void()>> callback);
  void taskFailed(kj::Exception&& exception) override;

  kj::AsyncIoContext io;
  kj::AutoCloseFd wake_fd;
  kj::UnixEventPort::FdObserver wake_observer;
  kj::Own<kj::PromiseFulfiller<void>> stop;  // of the Run() in progress; loop thread
  bool stop_requested = false;               // loop thread

  std::mutex mutex;
  std::vector<absl::AnyInvocable<void()>> posted;  // guarded by mutex
  std::vector<absl::AnyInvocable<void()>> batch;   // loop thread; keeps its capacity
  kj::TaskSet tasks;                               // last: ends before what its tasks use
};

}  // namespace terrace
