#include "daemon/codec_pool.h"

#include <algorithm>
#include <utility>

namespace terrace {

CodecPool::CodecPool(uint32_t threads, PostFn post) : post_(std::move(post)) {
  for (uint32_t i = 0; i < std::max(threads, 1u); ++i) threads_.emplace_back([this] { Serve(); });
}

CodecPool::~CodecPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void CodecPool::Run(Urgency urgency, absl::AnyInvocable<void()> work,
                    absl::AnyInvocable<void()> done) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const Place place{urgency.priority, urgency.batch, urgency.step, arrivals_++};
    tasks_.emplace(place, Task{std::move(work), std::move(done)});
  }
  changed_.notify_one();
}

void CodecPool::Serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (stopping_) return;
    Task task = std::move(tasks_.extract(tasks_.begin()).mapped());
    lock.unlock();
    task.work();
    task.work = nullptr;  // what it holds goes here, not on the loop
    post_(std::move(task.done));
    lock.lock();
  }
}

}  // namespace terrace
