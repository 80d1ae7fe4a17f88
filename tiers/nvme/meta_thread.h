// The meta thread: everything of the tier that blocks in a system call or in RocksDB. Work is done
// in the order it was given; rows given together are committed together.
//
// All methods but the destructor may be called from any thread and do not block.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "tiers/nvme/meta_store.h"

namespace terrace::nvme {

class MetaThread {
 public:
  explicit MetaThread(MetaStore& store);
  // Finishes all work given. Blocks.
  ~MetaThread();

  // Makes a row durable, then calls `done` on the meta thread. Waits for Flush(), so that rows that
  // become ready in one round share one sync.
  void Put(const RowKey& key, std::string value, absl::AnyInvocable<void(absl::Status)> done);
  // Starts what Put() left waiting.
  void Flush();
  // Deletes a row, not necessarily durably: a deleted row that comes back after a power cut names a
  // record that is still whole or fails its checks.
  void Delete(const RowKey& key);
  // Runs `task` on the meta thread.
  void Run(absl::AnyInvocable<void(MetaStore&)> task);

 private:
  struct Work {
    RowKey key;
    std::string value;                            // put
    absl::AnyInvocable<void(absl::Status)> done;  // put
    absl::AnyInvocable<void(MetaStore&)> task;    // run
  };

  void Push(Work work, bool wake);
  void Loop();
  void Do(std::vector<Work>& works);

  MetaStore& store_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Work> queue_;  // guarded by mutex_
  bool awake_ = false;       // guarded by mutex_: there is work that may start
  bool stopping_ = false;    // guarded by mutex_
  std::thread thread_;
};

}  // namespace terrace::nvme
