#include "tiers/nvme/write_budget.h"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace terrace::nvme {

namespace {

constexpr double kDayUs = 24.0 * 3600 * 1e6;
// Saved ahead, as a share of the bucket: a crash loses at most this, and the superblock is written
// at most this often.
constexpr double kAhead = 1.0 / 64;

}  // namespace

WriteBudget::WriteBudget(uint64_t bytes_per_day, const Saved& saved, uint64_t now_us)
    : bytes_per_day_(bytes_per_day) {
  level_ = saved.time_us == 0 ? depth() : static_cast<double>(saved.bytes);
  // A clock that was set back grants nothing.
  refilled_us_ = saved.time_us == 0 ? now_us : std::min(saved.time_us, now_us);
  Refill(now_us);
  saved_floor_ = std::numeric_limits<double>::infinity();  // nothing is saved yet
}

void WriteBudget::Refill(uint64_t now_us) {
  if (now_us <= refilled_us_) {
    refilled_us_ = now_us;
    return;
  }
  const double rate = static_cast<double>(bytes_per_day_) * 3 / 4 / kDayUs;
  level_ = std::min(depth(), level_ + rate * static_cast<double>(now_us - refilled_us_));
  refilled_us_ = now_us;
}

bool WriteBudget::Take(uint64_t bytes, uint64_t now_us) {
  if (!limited()) return true;
  Refill(now_us);
  // A request longer than the bucket waits for a full one, or it would wait for ever.
  const bool enough = level_ >= static_cast<double>(bytes) || level_ >= depth();
  if (!enough) return false;
  level_ -= static_cast<double>(bytes);
  return true;
}

bool WriteBudget::should_save() const {
  return limited() && saved_floor_ > 0 && level_ < saved_floor_ + depth() * kAhead / 2;
}

uint64_t WriteBudget::available_bytes(uint64_t now_us) {
  if (!limited()) return UINT64_MAX;
  Refill(now_us);
  return level_ > 0 ? static_cast<uint64_t>(level_) : 0;
}

WriteBudget::Saved WriteBudget::Save(uint64_t now_us) {
  saved_floor_ = std::max(0.0, level_ - depth() * kAhead);
  return {static_cast<uint64_t>(saved_floor_), now_us};
}

WriteBudget::Saved WriteBudget::SaveAll(uint64_t now_us) {
  saved_floor_ = std::max(0.0, level_);
  return {static_cast<uint64_t>(saved_floor_), now_us};
}

}  // namespace terrace::nvme
