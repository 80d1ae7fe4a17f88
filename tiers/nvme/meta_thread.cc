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

void MetaThread::Push(Work work, bool wake) {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(work));
  if (!wake || awake_) return;
  awake_ = true;
  wake_.notify_one();
}

void MetaThread::Put(const RowKey& key, std::string value,
                     absl::AnyInvocable<void(absl::Status)> done) {
  Push({key, std::move(value), std::move(done), nullptr}, false);
}

void MetaThread::Flush() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (queue_.empty() || awake_) return;
  awake_ = true;
  wake_.notify_one();
}

void MetaThread::Delete(const RowKey& key) { Push({key, {}, nullptr, nullptr}, true); }

void MetaThread::Run(absl::AnyInvocable<void(MetaStore&)> task) {
  Push({{}, {}, nullptr, std::move(task)}, true);
}

void MetaThread::Loop() {
  std::vector<Work> works;
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return awake_ || stopping_; });
      awake_ = false;
      works.swap(queue_);
      if (works.empty() && stopping_) return;
    }
    Do(works);
    works.clear();
  }
}

void MetaThread::Do(std::vector<Work>& works) {
  for (size_t next = 0; next < works.size();) {
    if (works[next].task) {
      works[next++].task(store_);
      continue;
    }
    const size_t begin = next;
    MetaBatch batch;
    bool durable = false;
    for (; next < works.size() && !works[next].task; ++next) {
      if (works[next].done) {
        batch.Put(works[next].key, works[next].value);
        durable = true;
      } else {
        batch.Delete(works[next].key);
      }
    }
    const absl::Status status = store_.Write(std::move(batch), durable);
    for (size_t i = begin; i < next; ++i) {
      if (works[i].done) works[i].done(status);
    }
  }
}

}  // namespace terrace::nvme
