// The host tier of one tenant: an arena of extents inside one memfd that the tenant's clients map.
// One instance a tenant, so no client ever maps another tenant's bytes. A tier knows bytes, not
// tokens. Loop thread, except that growth populates pages on a private thread.
//
// The memfd is created at full capacity but sparse. Pages are populated in steps off the loop and
// ahead of demand (a first touch costs ten times a copy: DESIGN section 5); only populated ranges
// are ever allocated.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "config/post.h"
#include "kernels/shared_memory.h"
#include "tiers/extent_allocator.h"

namespace terrace {

struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;  // as asked for, not rounded
};

struct MemoryTierOptions {
  std::string name;               // of the memfd, for /proc
  uint64_t capacity_bytes = 0;    // 4 KiB multiple
  uint64_t growth_step_bytes = 64 << 20;
};

class MemoryTier {
 public:
  // Creates the memfd and starts populating the first step in the background.
  static absl::StatusOr<std::unique_ptr<MemoryTier>> Create(MemoryTierOptions options, PostFn post);
  ~MemoryTier();  // joins the populating thread

  // ResourceExhausted when no free run is large enough in what is populated: the caller evicts, or
  // waits if growing() says more is on its way. InvalidArgument when bytes > capacity_bytes.
  absl::StatusOr<Extent> Allocate(uint64_t bytes);
  void Free(const Extent& extent);

  uint8_t* At(const Extent& extent) const;  // for I/O into and out of the extent
  int fd() const;
  uint64_t capacity_bytes() const;
  uint64_t populated_bytes() const;   // [0, populated) of the memfd may be mapped and used
  uint64_t used_bytes() const;
  uint64_t largest_free_bytes() const;
  bool growing() const;               // a populate step is under way
  uint64_t HugePageBytes() const;
  // Called on the loop after each step; may be empty. Starts the next step by itself while free
  // populated space is below one step and capacity allows.
  void OnGrown(std::function<void()> callback);
};

}  // namespace terrace
