#include "kernels/shared_memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::kernels {

namespace {

constexpr uint64_t kPage = 4096;

absl::StatusOr<uint8_t*> Map(int fd, uint64_t bytes, int protection) {
  void* data = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("map ", bytes, " bytes of shared memory"));
  }
  return static_cast<uint8_t*>(data);
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(const std::string& name, uint64_t bytes) {
  if (bytes == 0 || bytes % kPage != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared memory of ", bytes, " bytes: not a positive multiple of 4096"));
  }
  SharedMemory memory;
  memory.fd_ = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (memory.fd_ < 0) return absl::ErrnoToStatus(errno, "memfd_create");
  if (ftruncate(memory.fd_, bytes) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("size a memfd to ", bytes, " bytes"));
  }
  if (fcntl(memory.fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return absl::ErrnoToStatus(errno, "seal a memfd");
  }
  absl::StatusOr<uint8_t*> data = Map(memory.fd_, bytes, PROT_READ | PROT_WRITE);
  if (!data.ok()) return data.status();
  memory.data_ = *data;
  memory.size_bytes_ = bytes;
  // A hint that the kernel may ignore: HugePageBytes() tells what came of it.
  madvise(memory.data_, bytes, MADV_HUGEPAGE);
  return memory;
}

absl::StatusOr<SharedMemory> SharedMemory::Attach(int fd, uint64_t bytes, bool writable) {
  SharedMemory memory;
  memory.fd_ = fd;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::FailedPreconditionError("received memory is not a memfd sealed against shrinking");
  }
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "fstat of received memory");
  if (bytes == 0 || static_cast<uint64_t>(info.st_size) < bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("received memory has ", info.st_size, " bytes, ", bytes, " were announced"));
  }
  absl::StatusOr<uint8_t*> data = Map(fd, bytes, PROT_READ | (writable ? PROT_WRITE : 0));
  if (!data.ok()) return data.status();
  memory.data_ = *data;
  memory.size_bytes_ = bytes;
  return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept { *this = std::move(other); }

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(fd_, other.fd_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
  if (fd_ >= 0) close(fd_);
}

absl::Status SharedMemory::Populate(uint64_t begin, uint64_t end) {
  // Reports a lack of memory (EFAULT for what would have been a SIGBUS) rather than raising it. Not
  // fallocate: that knows no mapping, so it ignores MADV_HUGEPAGE and takes 4 KiB pages.
  if (madvise(data_ + begin, end - begin, MADV_POPULATE_WRITE) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("populate bytes ", begin, " to ", end,
                                                     " of shared memory: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status SharedMemory::SealFutureWrites() {
  if (fcntl(fd_, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0) {
    return absl::ErrnoToStatus(errno, "seal a memfd against future writes");
  }
  return absl::OkStatus();
}

absl::Status SharedMemory::Discard(uint64_t begin, uint64_t end) {
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin) != 0) {
    return absl::ErrnoToStatus(errno, "give shared memory back");
  }
  return absl::OkStatus();
}

uint64_t SharedMemory::HugePageBytes() const {
  std::unique_ptr<FILE, int (*)(FILE*)> smaps(fopen("/proc/self/smaps", "re"), fclose);
  if (smaps == nullptr) return 0;
  const uint64_t begin = reinterpret_cast<uint64_t>(data_), end = begin + size_bytes_;
  uint64_t huge_kib = 0;
  bool inside = false;
  char line[512];
  while (fgets(line, sizeof line, smaps.get()) != nullptr) {
    uint64_t first, last, kib;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &first, &last) == 2) {
      inside = first >= begin && last <= end;
    } else if (inside && sscanf(line, "ShmemPmdMapped: %" SCNu64 " kB", &kib) == 1) {
      huge_kib += kib;
    }
  }
  return huge_kib * 1024;
}

void PrefaultRead(const uint8_t* data, uint64_t bytes) {
  // The kernel maps the naturally aligned 64 KiB around a read fault (fault_around_bytes).
  constexpr uint64_t kFaultAround = 64 << 10;
  const auto end = reinterpret_cast<uintptr_t>(data) + bytes;
  for (auto at = reinterpret_cast<uintptr_t>(data); at < end;
       at = (at / kFaultAround + 1) * kFaultAround) {
    (void)*reinterpret_cast<const volatile uint8_t*>(at);
  }
}

}  // namespace terrace::kernels
