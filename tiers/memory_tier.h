// The host tier of one tenant: an arena of extents inside one memfd that the tenant's clients map.
// One instance a tenant, so no client ever maps another tenant's bytes. A tier knows bytes, not
// tokens. Loop thread, except that growth populates pages on a private thread.
//
// The memfd has the length that the capacity may ever reach, but is sparse: the rest costs clients
// addresses, not memory. Pages are populated piece by piece, off the loop and ahead of demand (a
// first touch costs ten times a copy); only populated ranges are ever allocated. The first headroom
// is populated at full speed, and so is what somebody waits for; the rest at a pace that leaves the
// cores to the engine.
//
// A lower capacity takes effect step by step, Shrink() by Shrink(): nothing more is allocated above
// it, and what is free there goes back to the kernel. The owner evicts and moves what is used there
// (Strays, Copy); what it cannot move stays, and stays valid, until it is freed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "config/object_layout.h"
#include "config/post.h"
#include "kernels/shared_memory.h"
#include "tiers/extent_allocator.h"

namespace terrace {

struct Extent {
  uint64_t offset = 0;
  uint32_t block = 0;  // the allocator's name for it
};

struct MemoryTierOptions {
  std::string name;                     // of the memfd, for /proc
  uint64_t capacity_bytes = 0;          // 4 KiB multiple
  uint64_t headroom_bytes = 128 << 20;  // kept populated and free while capacity allows
  uint64_t max_capacity_bytes = 0;      // of SetCapacity, 4 KiB multiple; 0: capacity_bytes
};

class MemoryTier {
 public:
  // Creates the memfd and starts populating the headroom in the background. InvalidArgument when
  // a capacity is not a positive multiple of 4 KiB of at most ExtentAllocator::kMaxBytes.
  static absl::StatusOr<std::unique_ptr<MemoryTier>> Create(MemoryTierOptions options, PostFn post);
  ~MemoryTier();  // joins the populating thread

  // ResourceExhausted when no free run is large enough in what is populated: the caller evicts, or
  // waits if growing() says more is on its way. InvalidArgument when `bytes` can never fit: 0, more
  // than capacity_bytes, or more than is populated once the machine had no more memory to give.
  absl::StatusOr<Extent> Allocate(uint64_t bytes);
  void Free(const Extent& extent);

  // From now on; a lower one is reached by Shrink(). InvalidArgument when it is not a positive
  // multiple of 4 KiB of at most max_capacity_bytes().
  absl::Status SetCapacity(uint64_t bytes);
  // A bounded step towards a lower capacity. To be called some times a second.
  void Shrink();
  // Whether bytes of the extent lie where nothing may stay. False until Shrink() got that far.
  bool Strays(const Extent& extent, uint64_t bytes) const {
    return extent.offset + bytes > allocator_.limit_bytes();
  }
  // What is populated or used beyond the capacity: 0 once a lower one has been reached.
  uint64_t excess_bytes() const;
  // Copies the parts of an object on the tier's thread; neither extent may be freed before `done`
  // runs, on the loop, with the CRC32C of each part. Does not run once the tier is gone.
  using CopyDone = absl::AnyInvocable<void(std::vector<uint32_t> part_crcs)>;
  void Copy(const Extent& from, const Extent& to, std::vector<PartSpan> parts, CopyDone done);

  // Where the extent is mapped here, for I/O into and out of it.
  uint8_t* At(const Extent& extent) const { return memory_.data() + extent.offset; }
  int fd() const { return memory_.fd(); }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t headroom_bytes() const { return options_.headroom_bytes; }
  uint64_t max_capacity_bytes() const { return memory_.size_bytes(); }  // what clients map
  // [0, populated) of the memfd is used, or may be.
  uint64_t populated_bytes() const { return allocator_.limit_bytes(); }
  uint64_t used_bytes() const { return allocator_.used_bytes(); }
  uint64_t largest_free_bytes() const { return allocator_.largest_free_bytes(); }
  bool growing() const { return populated_bytes() < goal_; }  // pages are being populated
  uint64_t HugePageBytes() const { return memory_.HugePageBytes(); }

 private:
  MemoryTier(MemoryTierOptions options, kernels::SharedMemory memory, PostFn post);
  // Moves the goal when less than the headroom is free, or an allocation found no run.
  void MoveGoal(bool starved);
  void Grown(uint64_t bytes, absl::Status status);
  void CollectEmptied();
  void DiscardEmptied();
  void RunAside(absl::AnyInvocable<void()> job);
  void RunThread();

  const MemoryTierOptions options_;
  kernels::SharedMemory memory_;
  PostFn post_;
  ExtentAllocator allocator_;
  uint64_t capacity_bytes_;
  std::vector<ExtentAllocator::Range> emptied_;  // above the limit, free, maybe populated
  uint64_t goal_ = 0;                            // populated bytes wanted
  bool out_of_memory_ = false;  // the machine has no more: stay at what is populated
  // Guards against a piece that is posted after this object is gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  // Hand-over to the thread, which populates, copies and gives memory back.
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<absl::AnyInvocable<void()>> jobs_;  // before the next piece
  uint64_t thread_populated_ = 0;                // including a piece under way
  bool populating_ = false;
  bool strays_ahead_ = false;  // what is populated next may be in use already
  uint64_t thread_goal_ = 0;
  uint64_t hurry_to_ = 0;  // no pauses between pieces before this offset
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace terrace
