// Out-of-band extent allocator: two-level segregated fit (Masmano et al., "TLSF: a New Dynamic
// Memory Allocator for Real-Time Systems", ECRTS 2004) over a range of offsets it never touches,
// because the memory behind it is writable by clients. O(1) allocate and free with immediate
// coalescing, in units of 4 KiB. Not thread-safe: loop thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace terrace {

class ExtentAllocator {
 public:
  ExtentAllocator();
  // Appends `bytes` (a 4 KiB multiple) of free range at the end.
  void Grow(uint64_t bytes);
  // Offset of a free run of at least `bytes` (rounded up to 4 KiB), or nullopt.
  std::optional<uint64_t> Allocate(uint64_t bytes);
  // Requires an offset returned by Allocate and not yet freed (checked).
  void Free(uint64_t offset);

  uint64_t size_bytes() const;         // all of it, used and free
  uint64_t used_bytes() const;
  uint64_t largest_free_bytes() const; // exact lower bound within one TLSF class
  uint64_t allocation_count() const;
  // The private section belongs to the implementer.
};

}  // namespace terrace
