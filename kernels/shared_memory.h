// A memfd mapping: the memory that the daemon and a tenant's clients share. Movable owner; unmaps
// and closes on destruction. Populate() may run on any thread while others use populated ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace terrace::kernels {

class SharedMemory {
 public:
  // Creates a sparse memfd of `bytes` (a multiple of 4096) and maps it writable. No page is
  // allocated until Populate() or a first touch. Sealed against shrinking and growing.
  static absl::StatusOr<SharedMemory> Create(const std::string& name, uint64_t bytes);
  // Maps a descriptor received from a peer, after checking that it is a memfd sealed against
  // shrinking (a peer could otherwise raise SIGBUS here) and at least `bytes` long. Takes
  // ownership of `fd` in every case.
  static absl::StatusOr<SharedMemory> Attach(int fd, uint64_t bytes, bool writable);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  uint8_t* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  int fd() const { return fd_; }

  // Faults in [begin, end) (4 KiB multiples) for writing, huge pages where the kernel grants them.
  // ResourceExhausted when memory is short; part of the range may then be allocated (Discard gives
  // it back). Blocks: about 0.1 ms per MiB on huge pages, 1 ms on 4 KiB pages. Best in multiples of
  // 2 MiB.
  absl::Status Populate(uint64_t begin, uint64_t end);
  // Refuses every future writable mapping of the descriptor (existing ones stay): what makes a
  // page the daemon writes safe to hand to a client.
  absl::Status SealFutureWrites();
  // Gives [begin, end) back to the kernel; it reads as zeros afterwards.
  absl::Status Discard(uint64_t begin, uint64_t end);
  // Bytes of this mapping on huge pages right now (from smaps; slow, for status only).
  uint64_t HugePageBytes() const;

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  int fd_ = -1;
};

// Maps a range of shared memory that its creator has populated, for reading and writing, many pages
// a fault. Any thread.
void PrefaultRead(const uint8_t* data, uint64_t bytes);

}  // namespace terrace::kernels
