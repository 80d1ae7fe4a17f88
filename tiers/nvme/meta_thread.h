// The meta thread: everything of the tier that blocks in a system call or in RocksDB. Work is done
// in the order it was given.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "tiers/nvme/meta_store.h"

namespace terrace::nvme {

class MetaThread {
 public:
  using Task = absl::AnyInvocable<void(MetaStore&)>;

  explicit MetaThread(MetaStore& store);
  // Finishes all work given. Blocks.
  ~MetaThread();

  // Any thread; does not block.
  void Run(Task task);

 private:
  void Loop();

  MetaStore& store_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Task> queue_;  // guarded by mutex_
  bool stopping_ = false;    // guarded by mutex_
  std::thread thread_;
};

}  // namespace terrace::nvme
