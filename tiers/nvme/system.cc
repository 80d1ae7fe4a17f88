#include "tiers/nvme/system.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace terrace::nvme {

namespace {

template <typename T>
T OrErrno(T result) {
  return result < 0 ? static_cast<T>(-errno) : result;
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> System::MakeEngine(EngineChoice choice, uint32_t depth) {
  return MakeIoEngine(choice, depth);
}

int System::Open(const std::string& path, int flags) {
  return OrErrno(open(path.c_str(), flags | O_CLOEXEC, 0600));
}

int System::Allocate(int fd, uint64_t bytes) {
  return OrErrno(fallocate(fd, 0, 0, static_cast<off_t>(bytes)));
}

int System::Truncate(int fd, uint64_t bytes) {
  return OrErrno(ftruncate(fd, static_cast<off_t>(bytes)));
}

int64_t System::Read(int fd, void* to, uint64_t bytes, uint64_t offset) {
  return OrErrno<int64_t>(pread(fd, to, bytes, static_cast<off_t>(offset)));
}

int64_t System::Write(int fd, const void* from, uint64_t bytes, uint64_t offset) {
  return OrErrno<int64_t>(pwrite(fd, from, bytes, static_cast<off_t>(offset)));
}

int System::Sync(int fd) { return OrErrno(fdatasync(fd)); }

int System::SyncDirectory(const std::string& path) {
  const int fd = OrErrno(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd < 0) return fd;
  const int result = OrErrno(fsync(fd));
  close(fd);
  return result;
}

int System::Rename(const std::string& from, const std::string& to) {
  return OrErrno(std::rename(from.c_str(), to.c_str()));
}

int System::Unlink(const std::string& path) { return OrErrno(unlink(path.c_str())); }

System& System::Real() {
  static System* const system = new System;  // used by threads that may outlive static destruction
  return *system;
}

}  // namespace terrace::nvme
