#include "tiers/nvme/store_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

namespace {

constexpr mode_t kPrivateDirectory = 0700;

absl::Status Failed(int error, const char* call, const std::string& path) {
  return ErrnoStatus(error, absl::StrCat("nvme directory: ", call, " ", path));
}

absl::Status MakeDirectories(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (mkdir(parent.c_str(), kPrivateDirectory) != 0 && errno != EEXIST) {
      return Failed(errno, "create", parent);
    }
  }
  if (mkdir(path.c_str(), kPrivateDirectory) != 0 && errno != EEXIST) {
    return Failed(errno, "create", path);
  }
  if (access(path.c_str(), R_OK | W_OK | X_OK) != 0) return Failed(errno, "write to", path);
  return absl::OkStatus();
}

uint64_t WallClockUs() { return absl::ToUnixMicros(absl::Now()); }

bool HasSegments(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".tseg") return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<Superblock> ReadSuperblock(System& system, const std::string& path) {
  const int fd = system.Open(path, O_RDONLY);
  if (fd == -ENOENT) return absl::NotFoundError(path);
  if (fd < 0) return Failed(-fd, "open", path);
  absl::Cleanup close_fd = [fd] { close(fd); };
  std::array<uint8_t, kBlockBytes> block{};
  const int64_t count = Persist([&] { return system.Read(fd, block.data(), block.size(), 0); });
  if (count < 0)
    return absl::DataLossError(Failed(static_cast<int>(-count), "read", path).message());
  absl::StatusOr<Superblock> superblock =
      DecodeSuperblock({block.data(), static_cast<size_t>(count)});
  if (superblock.ok()) return superblock;
  return absl::Status(superblock.status().code(),
                      absl::StrCat(path, ": ", std::string(superblock.status().message())));
}

StoreDirectory::StoreDirectory(StoreDirectory&& other) noexcept { *this = std::move(other); }

StoreDirectory& StoreDirectory::operator=(StoreDirectory&& other) noexcept {
  std::swap(system_, other.system_);
  std::swap(path_, other.path_);
  std::swap(lock_fd_, other.lock_fd_);
  std::swap(superblock_, other.superblock_);
  std::swap(finding_, other.finding_);
  return *this;
}

StoreDirectory::~StoreDirectory() {
  if (lock_fd_ >= 0) close(lock_fd_);  // which unlocks; the file stays, or two could hold it
}

absl::StatusOr<StoreDirectory> StoreDirectory::Open(System& system, const std::string& path,
                                                    uint64_t segment_bytes) {
  StoreDirectory directory;
  directory.system_ = &system;
  directory.path_ = path;
  absl::Status status = MakeDirectories(path);
  if (status.ok()) status = directory.Lock(false);
  if (status.ok()) status = directory.LoadSuperblocks();
  if (status.ok()) status = MakeDirectories(directory.segments());
  if (status.ok() && directory.superblock_.epoch == 0) {
    status = directory.CreateSuperblocks(segment_bytes);
  } else if (status.ok() && !directory.finding_.empty()) {
    // The copy that does not check is the one that is written next, or made to be.
    for (int copy = 0; copy < 2 && status.ok(); ++copy) {
      status = directory.WriteSuperblock(
          {directory.superblock_.budget_bytes, directory.superblock_.budget_time_us},
          directory.superblock_.closed);
    }
  }
  if (!status.ok()) return status;
  const int synced = Persist([&] { return system.SyncDirectory(path); });
  if (synced < 0) return Failed(-synced, "fsync", path);
  return directory;
}

absl::StatusOr<StoreDirectory> StoreDirectory::OpenReadOnly(System& system,
                                                            const std::string& path) {
  struct stat info;
  const std::string segments = path + "/segments";
  if (stat(segments.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, " is not a store: it has no ", segments));
  }
  StoreDirectory directory;
  directory.system_ = &system;
  directory.path_ = path;
  absl::Status status = directory.Lock(true);
  if (status.ok()) status = directory.LoadSuperblocks();
  if (!status.ok()) return status;
  if (directory.superblock_.epoch == 0) {
    return absl::NotFoundError(absl::StrCat(path, " is not a store: it has no superblock"));
  }
  return directory;
}

absl::Status StoreDirectory::Lock(bool shared) {
  const std::string path = path_ + "/LOCK";
  lock_fd_ = open(path.c_str(), (shared ? O_RDONLY : O_RDWR | O_CREAT) | O_CLOEXEC, 0600);
  if (lock_fd_ < 0) {
    if (shared && errno == ENOENT) return absl::OkStatus();
    return Failed(errno, "open", path);
  }
  if (flock(lock_fd_, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Failed(errno, "lock", path);
    std::array<char, 32> holder{};
    const ssize_t count = pread(lock_fd_, holder.data(), holder.size() - 1, 0);
    return absl::FailedPreconditionError(absl::StrCat(
        "nvme directory ", path_, " is in use by process ", count > 0 ? holder.data() : "unknown",
        shared ? "; stop it first: a store is looked at while no daemon serves it" : ""));
  }
  if (shared) return absl::OkStatus();
  const std::string pid = absl::StrCat(getpid());
  if (ftruncate(lock_fd_, 0) != 0 ||
      pwrite(lock_fd_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return Failed(errno, "write", path);
  }
  return absl::OkStatus();
}

std::string StoreDirectory::SuperblockPath(uint64_t epoch) const {
  return path_ + (epoch % 2 == 1 ? "/superblock" : "/superblock.copy");
}

absl::Status StoreDirectory::LoadSuperblocks() {
  std::optional<Superblock> copies[2];
  int missing = 0;
  for (int which : {1, 0}) {
    absl::StatusOr<Superblock> copy = ReadSuperblock(*system_, SuperblockPath(which));
    if (copy.ok()) {
      copies[which] = *copy;
      continue;
    }
    if (!absl::IsNotFound(copy.status()) && !absl::IsDataLoss(copy.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(std::string(copy.status().message()),
                       ". Nothing was changed; to start empty, move ", path_, " away"));
    }
    const bool lost = absl::IsNotFound(copy.status());
    missing += lost;
    absl::StrAppend(&finding_, finding_.empty() ? "" : "; ", std::string(copy.status().message()),
                    lost ? " is missing" : "");
  }
  system_->Step("recovery.superblocks_read");
  if (copies[0] && copies[1] && copies[0]->store_id != copies[1]->store_id) {
    finding_ = absl::StrCat("the superblocks of ", path_, " are of different stores");
    const std::optional<StoreId> most = StoreIdOfSegments(*system_, segments());
    for (auto& copy : copies) {
      if (most.has_value() && copy->store_id != *most) copy.reset();
    }
  }
  for (const auto& copy : copies) {
    if (copy && copy->epoch > superblock_.epoch) superblock_ = *copy;
  }
  if (superblock_.epoch > 0) return absl::OkStatus();
  // Until both copies are there nothing else is: one may be torn when the other was never written.
  struct stat info;
  return AdoptSegments(missing == 2 || (missing == 1 && lstat(index().c_str(), &info) != 0));
}

// Without a superblock, the segments say whose they are.
absl::Status StoreDirectory::AdoptSegments(bool may_be_new) {
  const std::optional<StoreId> most = StoreIdOfSegments(*system_, segments());
  if (most.has_value()) {
    superblock_.store_id = *most;
    superblock_.epoch = 1;
    superblock_.budget_time_us = WallClockUs();  // and no bytes: what was spent is not known
    return absl::OkStatus();
  }
  if (!may_be_new || HasSegments(segments())) {
    return absl::FailedPreconditionError(
        absl::StrCat(finding_,
                     ", and no segment says whose it is. Nothing was changed; restore a "
                     "superblock, or move ",
                     path_, " away to start empty"));
  }
  finding_.clear();
  return absl::OkStatus();
}

absl::Status StoreDirectory::CreateSuperblocks(uint64_t segment_bytes) {
  StoreId& store_id = superblock_.store_id;
  if (getrandom(store_id.data(), store_id.size(), 0) != static_cast<ssize_t>(store_id.size())) {
    return Failed(errno, "getrandom for", path_);
  }
  superblock_.segment_bytes = segment_bytes;
  absl::Status status = WriteSuperblock({}, false);
  if (status.ok()) status = WriteSuperblock({}, false);
  return status;
}

absl::Status StoreDirectory::WriteSuperblock(const WriteBudget::Saved& budget, bool closed) {
  Superblock next = superblock_;
  ++next.epoch;
  next.budget_bytes = budget.bytes;
  next.budget_time_us = budget.time_us;
  next.closed = closed;
  std::array<uint8_t, kBlockBytes> block{};
  EncodeSuperblock(next, absl::MakeSpan(block));
  const std::string path = SuperblockPath(next.epoch);
  const int fd = system_->Open(path, O_WRONLY | O_CREAT);
  if (fd < 0) return Failed(-fd, "open", path);
  absl::Cleanup close_fd = [fd] { close(fd); };
  system_->Step("superblock.opened");
  // In place: the other copy is whole whatever becomes of this one.
  const int64_t written =
      Persist([&] { return system_->Write(fd, block.data(), block.size(), 0); });
  if (written < 0) return Failed(static_cast<int>(-written), "write", path);
  system_->Step("superblock.written");
  const int synced = Persist([&] { return system_->Sync(fd); });
  if (synced < 0) return Failed(-synced, "fdatasync", path);
  if (written != static_cast<int64_t>(block.size())) {
    return absl::UnavailableError(absl::StrCat("short write to ", path));
  }
  system_->Step("superblock.synced");
  // Not the store id: other threads read it.
  superblock_.epoch = next.epoch;
  superblock_.budget_bytes = next.budget_bytes;
  superblock_.budget_time_us = next.budget_time_us;
  superblock_.closed = next.closed;
  return absl::OkStatus();
}

absl::StatusOr<std::string> StoreDirectory::MoveIndexAside() const {
  for (int n = 1;; ++n) {
    const std::string aside = absl::StrCat(path_, "/index.corrupt-", n);
    struct stat info;
    if (lstat(aside.c_str(), &info) == 0) continue;
    const int renamed = system_->Rename(index(), aside);
    if (renamed < 0) return Failed(-renamed, "move aside", index());
    return aside;
  }
}

}  // namespace terrace::nvme
