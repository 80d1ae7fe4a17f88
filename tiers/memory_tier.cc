#include "tiers/memory_tier.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "config/object_layout.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

// Small, because whoever found no room waits for the piece under way.
constexpr uint64_t kPieceBytes = 8 << 20;
constexpr uint64_t kPageBytes = 4096;
// After a piece that nobody waits for, in times of what it took: at most a fifth of a core.
constexpr int kPauses = 4;

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
  tier->MoveGoal(false);
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
  MoveGoal(!allocation.has_value());
  if (!allocation) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no free run of ", bytes, " bytes in the host tier"));
  }
  return Extent{allocation->offset, allocation->block};
}

void MemoryTier::Free(const Extent& extent) { allocator_.Free(extent.block); }

void MemoryTier::MoveGoal(bool starved) {
  if (out_of_memory_) return;
  uint64_t goal = AlignUp(used_bytes() + options_.headroom_bytes, kPageBytes);
  // All that is free may be in runs too short.
  if (starved) goal = std::max(goal, populated_bytes() + kPieceBytes);
  goal = std::min(goal, capacity_bytes());
  if (goal <= goal_ && !(starved && growing())) return;
  const bool first = goal_ == 0;
  goal_ = std::max(goal, goal_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    thread_goal_ = goal_;
    if (first) hurry_to_ = goal_;
    if (starved) hurry_to_ = std::max(hurry_to_, populated_bytes() + kPieceBytes);
  }
  wake_.notify_one();
}

void MemoryTier::Grown(uint64_t bytes, absl::Status status) {
  if (status.ok()) {
    allocator_.Grow(bytes);
    return;
  }
  out_of_memory_ = true;
  goal_ = populated_bytes();
  spdlog::warn("host tier stays at {} of {} bytes: {}", populated_bytes(), capacity_bytes(),
               status.ToString());
}

void MemoryTier::GrowThread() {
  uint64_t populated = 0;
  std::chrono::steady_clock::duration took{};
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stopping_ || thread_goal_ > populated; });
    wake_.wait_for(lock, kPauses * took, [&] { return stopping_ || hurry_to_ > populated; });
    if (stopping_) return;
    const uint64_t begin = populated, end = std::min(begin + kPieceBytes, thread_goal_);
    lock.unlock();
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = memory_.Populate(begin, end);
    took = std::chrono::steady_clock::now() - start;
    // Memory is short: do not sit on pages of a piece that will never be used.
    if (!status.ok()) status.Update(memory_.Discard(begin, end));
    post_([this, alive = alive_, bytes = end - begin, status] {
      if (*alive) Grown(bytes, status);
    });
    if (!status.ok()) return;
    populated = end;
    lock.lock();
  }
}

}  // namespace terrace
