#include "tiers/nvme/store_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

namespace {

constexpr mode_t kPrivateDirectory = 0700;

absl::Status Failed(const char* call, const std::string& path) {
  return ErrnoStatus(errno, absl::StrCat("nvme directory: ", call, " ", path));
}

absl::Status MakeDirectories(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (mkdir(parent.c_str(), kPrivateDirectory) != 0 && errno != EEXIST) {
      return Failed("create", parent);
    }
  }
  if (mkdir(path.c_str(), kPrivateDirectory) != 0 && errno != EEXIST) return Failed("create", path);
  if (access(path.c_str(), R_OK | W_OK | X_OK) != 0) return Failed("write to", path);
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Failed("open", path);
  absl::Cleanup close_fd = [fd] { close(fd); };
  return fsync(fd) == 0 ? absl::OkStatus() : Failed("fsync", path);
}

// Durable under its name or not there at all.
absl::Status WriteSuperblock(const std::string& path, ConstBlock block) {
  const std::string temporary = path + ".new";
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return Failed("create", temporary);
  absl::Cleanup close_fd = [fd] { close(fd); };
  if (write(fd, block.data(), block.size()) != static_cast<ssize_t>(block.size()) ||
      fsync(fd) != 0 || rename(temporary.c_str(), path.c_str()) != 0) {
    return Failed("write", path);
  }
  return absl::OkStatus();
}

bool HasSegments(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".tseg") return true;
  }
  return false;
}

}  // namespace

StoreDirectory::StoreDirectory(StoreDirectory&& other) noexcept { *this = std::move(other); }

StoreDirectory& StoreDirectory::operator=(StoreDirectory&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(lock_fd_, other.lock_fd_);
  std::swap(store_id_, other.store_id_);
  return *this;
}

StoreDirectory::~StoreDirectory() {
  if (lock_fd_ >= 0) close(lock_fd_);  // which unlocks; the file stays, or two could hold it
}

absl::StatusOr<StoreDirectory> StoreDirectory::Open(const std::string& path,
                                                    uint64_t segment_bytes) {
  StoreDirectory directory;
  directory.path_ = path;
  absl::Status status = MakeDirectories(path);
  if (status.ok()) status = directory.Lock();
  if (status.ok()) status = directory.LoadOrCreateSuperblock(segment_bytes);
  if (status.ok()) status = MakeDirectories(directory.segments());
  if (status.ok()) status = SyncDirectory(path);
  if (!status.ok()) return status;
  return directory;
}

absl::Status StoreDirectory::Lock() {
  const std::string path = path_ + "/LOCK";
  lock_fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd_ < 0) return Failed("open", path);
  if (flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Failed("lock", path);
    std::array<char, 32> holder{};
    const ssize_t count = pread(lock_fd_, holder.data(), holder.size() - 1, 0);
    return absl::FailedPreconditionError(absl::StrCat(
        "nvme directory ", path_, " is in use by process ", count > 0 ? holder.data() : "unknown"));
  }
  const std::string pid = absl::StrCat(getpid());
  if (ftruncate(lock_fd_, 0) != 0 ||
      pwrite(lock_fd_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return Failed("write", path);
  }
  return absl::OkStatus();
}

absl::Status StoreDirectory::LoadOrCreateSuperblock(uint64_t segment_bytes) {
  const std::string path = path_ + "/superblock";
  std::array<uint8_t, kBlockBytes> block{};
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    absl::Cleanup close_fd = [fd] { close(fd); };
    const ssize_t count = read(fd, block.data(), block.size());
    if (count < 0) return Failed("read", path);
    absl::StatusOr<Superblock> superblock =
        DecodeSuperblock({block.data(), static_cast<size_t>(count)});
    if (!superblock.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": ", std::string(superblock.status().message()),
                       ". Nothing was changed; to start empty, move ", path_, " away"));
    }
    store_id_ = superblock->store_id;
    return absl::OkStatus();
  }
  if (errno != ENOENT) return Failed("open", path);
  if (HasSegments(segments())) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_,
                     " holds segments but no superblock. Nothing was changed; restore the "
                     "superblock, or move the directory away to start empty"));
  }
  if (getrandom(store_id_.data(), store_id_.size(), 0) != static_cast<ssize_t>(store_id_.size())) {
    return Failed("getrandom for", path);
  }
  EncodeSuperblock({store_id_, segment_bytes}, absl::MakeSpan(block));
  return WriteSuperblock(path, block);
}

absl::StatusOr<std::string> StoreDirectory::MoveIndexAside() const {
  for (int n = 1;; ++n) {
    const std::string aside = absl::StrCat(path_, "/index.corrupt-", n);
    struct stat info;
    if (lstat(aside.c_str(), &info) == 0) continue;
    if (rename(index().c_str(), aside.c_str()) != 0) return Failed("move aside", index());
    return aside;
  }
}

}  // namespace terrace::nvme
