// A loop thread for tests: closures posted from any thread run in RunUntil, on the caller's thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/functional/function_ref.h"
#include "config/post.h"

namespace terrace {

class TestLoop {
 public:
  // Valid as long as the loop lives.
  PostFn post() {
    return [this](absl::AnyInvocable<void()> closure) {
      std::lock_guard<std::mutex> lock(mutex_);
      posted_.push_back(std::move(closure));
      wake_.notify_one();
    };
  }

  // Runs posted closures until `done` answers true or the time is up. Returns whether it did.
  bool RunUntil(absl::FunctionRef<bool()> done,
                std::chrono::seconds timeout = std::chrono::seconds(30)) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!done()) {
      absl::AnyInvocable<void()> closure;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!wake_.wait_until(lock, deadline, [this] { return !posted_.empty(); })) return done();
        closure = std::move(posted_.front());
        posted_.pop_front();
      }
      closure();
      // Closures may post others, and `done` too: that must not keep the time from being up.
      if (std::chrono::steady_clock::now() >= deadline) return done();
    }
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<absl::AnyInvocable<void()>> posted_;
};

}  // namespace terrace
