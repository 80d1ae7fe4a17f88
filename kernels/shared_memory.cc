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
constexpr uint64_t kHugePage = 2 << 20;
#ifndef MADV_COLLAPSE
constexpr int MADV_COLLAPSE = 25;  // Linux 6.1
#endif

// At an address where huge pages of the file can be mapped as such.
absl::StatusOr<uint8_t*> Map(int fd, uint64_t bytes, int protection) {
  const uint64_t reserved = bytes + kHugePage;
  void* address =
      mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, "reserve addresses");
  auto* begin = static_cast<uint8_t*>(address);
  uint8_t* data = begin + (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (mmap(data, bytes, protection, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED) {
    absl::Status status =
        absl::ErrnoToStatus(errno, absl::StrCat("map ", bytes, " bytes of shared memory"));
    munmap(address, reserved);
    return status;
  }
  uint8_t* end = data + (bytes + kPage - 1) / kPage * kPage;
  if (data > begin) munmap(begin, data - begin);
  if (begin + reserved > end) munmap(end, begin + reserved - end);
  return data;
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
  // Reports a lack of memory (EFAULT for what would have been a SIGBUS) rather than raising it.
  const auto fault_in = [this](uint64_t first, uint64_t last) {
    if (madvise(data_ + first, last - first, MADV_POPULATE_WRITE) == 0) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("populate bytes ", first, " to ", last,
                                                     " of shared memory: ", std::strerror(errno)));
  };
  // Whole huge pages first: a tenth of the time of 4 KiB pages, and reads and I/O are faster later.
  // MADV_COLLAPSE works whatever shmem_enabled says, on what has one page at least; where it gives
  // nothing (Linux before 6.1, memory too fragmented), 4 KiB pages follow.
  const uint64_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uint64_t last = end / kHugePage * kHugePage;
  for (uint64_t at = first; at < last; at += kHugePage) {
    absl::Status seeded = fault_in(at, at + kPage);
    if (!seeded.ok()) return seeded;
  }
  if (first < last) madvise(data_ + first, last - first, MADV_COLLAPSE);
  return fault_in(begin, end);
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
