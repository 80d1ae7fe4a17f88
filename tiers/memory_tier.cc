#include "tiers/memory_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

// Small, because whoever found no room waits for the piece under way.
constexpr uint64_t kPieceBytes = 16 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryTier>> MemoryTier::Create(MemoryTierOptions options,
                                                               PostFn post) {
  if (options.capacity_bytes > ExtentAllocator::kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a host tier of ", options.capacity_bytes,
                                                   " bytes: at most ", ExtentAllocator::kMaxBytes,
                                                   " (host.capacity)"));
  }
  auto memory = kernels::SharedMemory::Create(options.name, options.capacity_bytes);
  if (!memory.ok()) return memory.status();
  auto tier = std::unique_ptr<MemoryTier>(
      new MemoryTier(std::move(options), *std::move(memory), std::move(post)));
  tier->GrowIfShort();
  return tier;
}

MemoryTier::MemoryTier(MemoryTierOptions options, kernels::SharedMemory memory, PostFn post)
    : options_(std::move(options)),
      memory_(std::move(memory)),
      post_(std::move(post)),
      thread_([this] { GrowThread(); }) {}

MemoryTier::~MemoryTier() {
  *alive_ = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

absl::StatusOr<Extent> MemoryTier::Allocate(uint64_t bytes) {
  // Once memory ran out, evicting everything would not make room for more than there is.
  const uint64_t limit = out_of_memory_ ? populated_bytes() : capacity_bytes();
  if (bytes == 0 || bytes > limit) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an object of ", bytes, " bytes does not fit the host tier of ", limit,
        out_of_memory_ ? " bytes (the machine has no more memory)" : " bytes (host.capacity)"));
  }
  const auto allocation = allocator_.Allocate(bytes);
  starved_ = !allocation.has_value();
  GrowIfShort();
  if (!allocation) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no free run of ", bytes, " bytes in the host tier"));
  }
  return Extent{allocation->offset, bytes, allocation->block};
}

void MemoryTier::Free(const Extent& extent) { allocator_.Free(extent.block); }

void MemoryTier::GrowIfShort() {
  const uint64_t populated = populated_bytes();
  const uint64_t free_bytes = populated - used_bytes();
  if (growing_ || out_of_memory_ || populated == capacity_bytes() ||
      (free_bytes >= options_.headroom_bytes && !starved_)) {
    return;
  }
  growing_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    piece_begin_ = populated;
    piece_bytes_ = std::min(kPieceBytes, capacity_bytes() - populated);
  }
  wake_.notify_one();
}

void MemoryTier::Grown(uint64_t bytes, absl::Status status) {
  growing_ = false;
  starved_ = false;
  if (!status.ok()) {
    out_of_memory_ = true;
    spdlog::warn("host tier stays at {} of {} bytes: {}", populated_bytes(), capacity_bytes(),
                 status.ToString());
    return;
  }
  allocator_.Grow(bytes);
  GrowIfShort();
}

void MemoryTier::GrowThread() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || piece_bytes_ > 0; });
    if (stopping_) return;
    const uint64_t begin = piece_begin_, bytes = std::exchange(piece_bytes_, 0);
    lock.unlock();
    absl::Status status = memory_.Populate(begin, begin + bytes);
    // Memory is short: do not sit on pages of a piece that will never be used.
    if (!status.ok()) status.Update(memory_.Discard(begin, begin + bytes));
    post_([this, alive = alive_, bytes, status] {
      if (*alive) Grown(bytes, status);
    });
    lock.lock();
  }
}

}  // namespace terrace
