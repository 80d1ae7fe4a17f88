#include "replay/virtual_link.h"

#include <algorithm>
#include <cmath>

namespace terrace::replay {

namespace {
constexpr double kUtilisationUs = 250e3;  // time constant
}  // namespace

void VirtualLink::Demand(PolicyId id, uint32_t generation, uint64_t bytes) {
  queued_bytes_ += bytes;
  for (uint64_t left = bytes; left > 0;) {
    const uint64_t piece = std::min(left, piece_bytes_);
    demands_.push_back({id, generation, piece, Traffic::kDemand});
    left -= piece;
  }
}

std::optional<VirtualLink::Started> VirtualLink::Begin(
    uint64_t now, absl::FunctionRef<std::optional<LinkPiece>()> background) {
  if (busy_) return std::nullopt;
  std::optional<LinkPiece> piece;
  if (!demands_.empty()) {
    piece = demands_.front();
    demands_.pop_front();
    queued_bytes_ -= piece->bytes;
  } else {
    piece = background();
  }
  if (!piece && write_backlog_ > 0) {
    piece = LinkPiece{kNoPolicyId, 0, std::min(write_backlog_, piece_bytes_), Traffic::kWrite};
    write_backlog_ -= piece->bytes;
  }
  if (!piece) return std::nullopt;
  busy_ = true;
  const double us = static_cast<double>(piece->bytes) / options_.bytes_per_s * 1e6;
  const double whole = std::floor(us + fraction_us_);
  fraction_us_ += us - whole;
  Account(*piece, now, us);
  const uint64_t free_at = now + static_cast<uint64_t>(whole);
  return Started{*piece, free_at, free_at + options_.latency_us};
}

void VirtualLink::Account(const LinkPiece& piece, uint64_t now, double us) {
  counts_.busy_us += static_cast<uint64_t>(us);
  switch (piece.traffic) {
    case Traffic::kDemand:
      counts_.demand_bytes += piece.bytes;
      break;
    case Traffic::kPrefetch:
      counts_.prefetch_bytes += piece.bytes;
      return;  // is not what others wait for
    case Traffic::kWrite:
      counts_.write_bytes += piece.bytes;
      break;
  }
  used_us_ = used_us_ * std::exp(-static_cast<double>(now - used_at_) / kUtilisationUs) + us;
  used_at_ = now;
}

uint64_t VirtualLink::TransferUs(uint64_t bytes) const {
  return static_cast<uint64_t>(static_cast<double>(bytes) / options_.bytes_per_s * 1e6);
}

double VirtualLink::Utilisation(uint64_t now) const {
  const double used = used_us_ * std::exp(-static_cast<double>(now - used_at_) / kUtilisationUs);
  // Since the clock began, while that is not long ago.
  const double over = kUtilisationUs * -std::expm1(-static_cast<double>(now) / kUtilisationUs);
  return over > 0 ? std::min(1.0, used / over) : 0;
}

}  // namespace terrace::replay
