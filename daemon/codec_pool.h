// The threads that encode and decode. What they run are pure functions of bytes; the most urgent
// goes first. Loop thread, but for the work itself.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "config/post.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace {

class CodecPool {
 public:
  // Least first: class, batch of reads, step within it (a layer), order of arrival.
  struct Urgency {
    IoPriority priority = IoPriority::kBackground;
    uint64_t batch = 0;
    uint32_t step = 0;
  };

  // At least one thread. Results go to the loop through `post`.
  CodecPool(uint32_t threads, PostFn post);
  // Drops what has not begun, waits for what has.
  ~CodecPool();
  CodecPool(const CodecPool&) = delete;
  CodecPool& operator=(const CodecPool&) = delete;

  // Runs `work` on a thread of the pool, then `done` on the loop.
  void Run(Urgency urgency, absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> done);
  uint32_t threads() const { return static_cast<uint32_t>(threads_.size()); }

 private:
  struct Task {
    absl::AnyInvocable<void()> work, done;
  };
  using Place = std::tuple<IoPriority, uint64_t, uint32_t, uint64_t>;

  void Serve();

  const PostFn post_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Place, Task> tasks_;  // guarded by mutex_
  uint64_t arrivals_ = 0;        // guarded by mutex_
  bool stopping_ = false;        // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace terrace
