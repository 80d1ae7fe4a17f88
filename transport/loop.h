// The event loop of the daemon's loop thread, with KJ hidden. Create, use and destroy on one
// thread; Post() and Stop() from any thread or a signal-handling thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "config/post.h"

namespace terrace {

class Loop {
 public:
  Loop();
  ~Loop();

  // Runs until Stop(). Posted closures run between I/O events, in order.
  void Run();
  void Stop();
  void Post(absl::AnyInvocable<void()> closure);
  PostFn poster();  // valid as long as the loop lives

  // Runs `callback` every `period_ms` until the loop ends. Loop thread.
  void Every(uint64_t period_ms, std::function<void()> callback);

  struct Impl;  // for server.cc
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace
