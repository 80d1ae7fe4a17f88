// What the tier asks of the operating system, and what may go wrong there: the one seam at which
// tests inject errors, short transfers, delays, lost syncs and crashes. RocksDB has its own files;
// of it only the outcome of a write can be replaced.
//
// The blocking calls are made at Open, at Stop and on the meta thread; each returns as the system
// call does, but -errno instead of -1. Any thread.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tiers/nvme/io_engine.h"

namespace terrace::nvme {

// The system asks for the same call again, which is given up after so many attempts without
// progress.
inline constexpr uint32_t kMaxRetries = 64;
inline bool IsTransient(int64_t result) { return result == -EINTR || result == -EAGAIN; }
// What a blocking call says in the end.
template <typename Call>
auto Persist(Call&& call) {
  auto result = call();
  for (uint32_t i = 0; i < kMaxRetries && IsTransient(result); ++i) result = call();
  return result;
}

class System {
 public:
  virtual ~System() = default;

  virtual absl::StatusOr<std::unique_ptr<IoEngine>> MakeEngine(EngineChoice choice, uint32_t depth);

  virtual int Open(const std::string& path, int flags);  // O_CLOEXEC added; created with mode 0600
  virtual int Allocate(int fd, uint64_t bytes);          // fallocate(2)
  virtual int Truncate(int fd, uint64_t bytes);
  virtual int64_t Read(int fd, void* to, uint64_t bytes, uint64_t offset);
  virtual int64_t Write(int fd, const void* from, uint64_t bytes, uint64_t offset);
  virtual int Sync(int fd);  // fdatasync(2)
  virtual int SyncDirectory(const std::string& path);
  virtual int Rename(const std::string& from, const std::string& to);
  virtual int Unlink(const std::string& path);

  // An error to report instead of writing to the index; ok in earnest.
  virtual absl::Status IndexFault() { return absl::OkStatus(); }
  // A labelled step of storing, sealing, reclaiming or recovering is reached: where tests kill the
  // process. `label` is a literal, "store.written".
  virtual void Step(const char* label) { static_cast<void>(label); }

  // The system itself. Lives for ever.
  static System& Real();
};

}  // namespace terrace::nvme
