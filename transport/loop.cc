#include "transport/loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <utility>

#include "transport/loop_impl.h"

namespace terrace {
namespace {

// KJ polls for I/O only when its queue is empty or after this many events: without the limit one
// client that keeps its socket full would starve the others.
constexpr unsigned kBusyPollInterval = 256;

kj::AutoCloseFd NewEventFd() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) std::terminate();  // a process without descriptors at start cannot serve
  return kj::AutoCloseFd(fd);
}

}  // namespace

// setupAsyncIo also ignores SIGPIPE: a client that dies while we write is an error code, no signal.
Loop::Impl::Impl()
    : io(kj::setupAsyncIo()),
      wake_fd(NewEventFd()),
      wake_observer(io.unixEventPort, wake_fd, kj::UnixEventPort::FdObserver::OBSERVE_READ),
      tasks(*this) {
  io.waitScope.setBusyPollInterval(kBusyPollInterval);
  tasks.add(WatchPosts());
}

Loop::Impl::~Impl() = default;

void Loop::Impl::Post(absl::AnyInvocable<void()> closure) {
  bool was_empty;
  {
    std::lock_guard<std::mutex> lock(mutex);
    was_empty = posted.empty();
    posted.push_back(std::move(closure));
  }
  if (was_empty) {
    const uint64_t one = 1;
    (void)!write(wake_fd, &one, sizeof one);  // cannot fail: the counter never nears its maximum
  }
}

kj::Promise<void> Loop::Impl::WatchPosts() {
  // Registered before the counter is read, so a write after the read is another event.
  return wake_observer.whenBecomesReadable().then([this] {
    uint64_t count;
    (void)!read(wake_fd, &count, sizeof count);
    RunPosted();
    return WatchPosts();
  });
}

void Loop::Impl::RunPosted() noexcept {
  {
    std::lock_guard<std::mutex> lock(mutex);
    batch.swap(posted);
  }
  for (auto& closure : batch) std::move(closure)();
  batch.clear();
}

kj::Promise<void> Loop::Impl::Tick(uint64_t period_ms,
                                   std::shared_ptr<std::function<void()>> callback) {
  return io.lowLevelProvider->getTimer()
      .afterDelay(period_ms * kj::MILLISECONDS)
      .then([this, period_ms, callback = std::move(callback)]() mutable {
        [&]() noexcept { (*callback)(); }();
        return Tick(period_ms, std::move(callback));
      });
}

void Loop::Impl::taskFailed(kj::Exception&&) { std::terminate(); }  // only our own tasks run here

Loop::Loop() : impl_(std::make_unique<Impl>()) {}
Loop::~Loop() = default;

void Loop::Run() {
  if (!impl_->stop_requested) {
    auto stopped = kj::newPromiseAndFulfiller<void>();
    impl_->stop = kj::mv(stopped.fulfiller);
    stopped.promise.wait(impl_->io.waitScope);
  }
  impl_->stop = nullptr;
  impl_->stop_requested = false;
}

void Loop::Stop() {
  Post([impl = impl_.get()] {
    impl->stop_requested = true;
    if (impl->stop.get() != nullptr) impl->stop->fulfill();
  });
}

void Loop::Post(absl::AnyInvocable<void()> closure) { impl_->Post(std::move(closure)); }

PostFn Loop::poster() {
  return
      [impl = impl_.get()](absl::AnyInvocable<void()> closure) { impl->Post(std::move(closure)); };
}

void Loop::Every(uint64_t period_ms, std::function<void()> callback) {
  impl_->tasks.add(
      impl_->Tick(period_ms, std::make_shared<std::function<void()>>(std::move(callback))));
}

}  // namespace terrace
