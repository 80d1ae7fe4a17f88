#include "tiers/nvme/meta_thread.h"

#include <utility>

namespace terrace::nvme {

MetaThread::MetaThread(MetaStore& store) : store_(store), thread_([this] { Loop(); }) {}

MetaThread::~MetaThread() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void MetaThread::Run(Task task) {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(task));
  wake_.notify_one();
}

void MetaThread::Loop() {
  std::vector<Task> tasks;
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return !queue_.empty() || stopping_; });
      tasks.swap(queue_);
      if (tasks.empty()) return;
    }
    for (Task& task : tasks) task(store_);
    tasks.clear();
  }
}

}  // namespace terrace::nvme
