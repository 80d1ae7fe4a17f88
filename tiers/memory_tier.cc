#include "tiers/memory_tier.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

// Small, because whoever found no room waits for the piece under way.
constexpr uint64_t kPieceBytes = 8 << 20;
constexpr uint64_t kPageBytes = 4096;
// After a piece that nobody waits for, in times of what it took: at most a fifth of a core.
constexpr int kPauses = 4;
// Blocks of the allocator that one step of a shrink visits: some hundred microseconds.
constexpr uint32_t kShrinkBlocks = 2048;
// Given back at a time: a copy that somebody waits for goes in between.
constexpr uint64_t kDiscardBytes = 32 << 20;

absl::Status CheckCapacity(uint64_t bytes, uint64_t max_bytes) {
  if (bytes > 0 && bytes % kPageBytes == 0 && bytes <= max_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a host tier of ", bytes, " bytes: expected ",
                                                 kPageBytes, " .. ", max_bytes, ", a multiple of ",
                                                 kPageBytes, " (host.capacity)"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryTier>> MemoryTier::Create(MemoryTierOptions options,
                                                               PostFn post) {
  if (options.max_capacity_bytes == 0) options.max_capacity_bytes = options.capacity_bytes;
  absl::Status fits = CheckCapacity(options.max_capacity_bytes, ExtentAllocator::kMaxBytes);
  if (fits.ok()) fits = CheckCapacity(options.capacity_bytes, options.max_capacity_bytes);
  if (!fits.ok()) return fits;
  auto memory = kernels::SharedMemory::Create(options.name, options.max_capacity_bytes);
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
      capacity_bytes_(options_.capacity_bytes),
      thread_([this] { RunThread(); }) {}

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

absl::Status MemoryTier::SetCapacity(uint64_t bytes) {
  absl::Status valid = CheckCapacity(bytes, max_capacity_bytes());
  if (!valid.ok()) return valid;
  capacity_bytes_ = bytes;
  out_of_memory_ = false;  // there may be more by now
  goal_ = std::min(goal_, bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    thread_goal_ = std::min(thread_goal_, bytes);
  }
  MoveGoal(false);
  return absl::OkStatus();
}

void MemoryTier::Shrink() {
  if (populated_bytes() > capacity_bytes_) {
    // What the thread has populated must have arrived here: it goes on from the new limit.
    std::lock_guard<std::mutex> lock(mutex_);
    if (!populating_ && thread_populated_ == populated_bytes()) {
      allocator_.Lower(capacity_bytes_, kShrinkBlocks);
      thread_populated_ = populated_bytes();
      hurry_to_ = std::min(hurry_to_, thread_populated_);
    }
  }
  DiscardEmptied();
}

uint64_t MemoryTier::excess_bytes() const {
  const uint64_t there = populated_bytes() + allocator_.used_above_bytes();
  return there > capacity_bytes_ ? there - capacity_bytes_ : 0;
}

void MemoryTier::CollectEmptied() {
  auto emptied = allocator_.TakeEmptied();
  emptied_.insert(emptied_.end(), emptied.begin(), emptied.end());
}

void MemoryTier::DiscardEmptied() {
  CollectEmptied();
  if (emptied_.empty()) return;
  // Up to where pages are being populated, or will be by jobs after these, they are kept.
  uint64_t keep = std::max(goal_, populated_bytes());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    keep = std::max(keep, thread_populated_);
  }
  std::vector<ExtentAllocator::Range> kept;
  for (const auto& [offset, bytes] : emptied_) {
    const uint64_t end = offset + bytes;
    if (offset < std::min(end, keep)) kept.push_back({offset, std::min(end, keep) - offset});
    for (uint64_t at = std::max(offset, keep), to; at < end; at = to) {
      to = std::min((at / kDiscardBytes + 1) * kDiscardBytes, end);  // no huge page in two parts
      RunAside([this, at, to] {
        const absl::Status status = memory_.Discard(at, to);
        if (!status.ok()) spdlog::warn("host tier: {}", status.ToString());
      });
    }
  }
  emptied_ = std::move(kept);
}

void MemoryTier::Copy(const Extent& from, const Extent& to, std::vector<PartSpan> parts,
                      CopyDone done) {
  RunAside([this, source = At(from), destination = At(to), parts = std::move(parts),
            done = std::move(done)]() mutable {
    std::vector<uint32_t> part_crcs;
    for (const PartSpan& part : parts) {
      part_crcs.push_back(
          kernels::CopyCrc32c(destination + part.offset, source + part.offset, part.bytes));
    }
    post_([alive = alive_, done = std::move(done), part_crcs = std::move(part_crcs)]() mutable {
      if (*alive) done(std::move(part_crcs));
    });
  });
}

void MemoryTier::RunAside(absl::AnyInvocable<void()> job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

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
    strays_ahead_ = allocator_.used_above_bytes() > 0;
    if (first) hurry_to_ = goal_;
    if (starved) hurry_to_ = std::max(hurry_to_, populated_bytes() + kPieceBytes);
  }
  wake_.notify_one();
}

void MemoryTier::Grown(uint64_t bytes, absl::Status status) {
  if (status.ok()) {
    allocator_.Grow(bytes);
    // What had been emptied there is for use again.
    CollectEmptied();
    for (auto& [offset, length] : emptied_) {
      const uint64_t end = offset + length;
      offset = std::min(std::max(offset, populated_bytes()), end);
      length = end - offset;
    }
    return;
  }
  out_of_memory_ = true;
  goal_ = populated_bytes();
  spdlog::warn("host tier stays at {} of {} bytes: {}", populated_bytes(), capacity_bytes(),
               status.ToString());
}

void MemoryTier::RunThread() {
  std::chrono::steady_clock::duration took{};
  std::unique_lock<std::mutex> lock(mutex_);
  const auto urgent = [&] { return stopping_ || !jobs_.empty(); };
  while (true) {
    wake_.wait(lock, [&] { return urgent() || thread_goal_ > thread_populated_; });
    wake_.wait_for(lock, kPauses * took, [&] { return urgent() || hurry_to_ > thread_populated_; });
    if (stopping_) return;
    if (!jobs_.empty()) {
      absl::AnyInvocable<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
      continue;
    }
    const uint64_t begin = thread_populated_, end = std::min(begin + kPieceBytes, thread_goal_);
    if (begin >= end) continue;  // the goal went down during the pause
    const bool strays_ahead = strays_ahead_;
    thread_populated_ = end;
    populating_ = true;
    lock.unlock();
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = memory_.Populate(begin, end);
    took = std::chrono::steady_clock::now() - start;
    // Memory is short: do not sit on pages of a piece that will never be used.
    if (!status.ok() && !strays_ahead) status.Update(memory_.Discard(begin, end));
    post_([this, alive = alive_, bytes = end - begin, status] {
      if (*alive) Grown(bytes, status);
    });
    lock.lock();
    populating_ = false;
    if (!status.ok()) thread_goal_ = thread_populated_ = begin;
  }
}

}  // namespace terrace
