// A link between two tiers on a virtual clock: one piece at a time, which nothing interrupts;
// demand before everything else, in its order; then what the owner thinks worth moving; then
// writes. Latency is added to each piece and does not occupy the link. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "absl/functional/function_ref.h"
#include "tiers/eviction/policy.h"

namespace terrace::replay {

struct LinkOptions {
  double bytes_per_s = 0;  // above 0
  uint64_t latency_us = 0;
};

enum class Traffic : uint8_t { kDemand, kPrefetch, kWrite };

struct LinkPiece {
  PolicyId id = kNoPolicyId;  // of the object; none for writes
  uint32_t generation = 0;    // of its move: the owner's
  uint64_t bytes = 0;
  Traffic traffic = Traffic::kDemand;
};

struct LinkCounts {
  uint64_t demand_bytes = 0, prefetch_bytes = 0, write_bytes = 0;
  uint64_t busy_us = 0;
};

class VirtualLink {
 public:
  // `piece_bytes` above 0.
  VirtualLink(const LinkOptions& options, uint64_t piece_bytes)
      : options_(options), piece_bytes_(piece_bytes) {}

  // Asks for bytes of an object, in pieces.
  void Demand(PolicyId id, uint32_t generation, uint64_t bytes);
  void Write(uint64_t bytes) { write_backlog_ += bytes; }

  struct Started {
    LinkPiece piece;
    uint64_t free_at = 0;  // the link is
    uint64_t lands_at = 0;
  };
  // Starts the next piece when the link is free and there is one. `background` is asked when no
  // demand waits.
  std::optional<Started> Begin(uint64_t now,
                               absl::FunctionRef<std::optional<LinkPiece>()> background);
  // Called at Started::free_at.
  void End() { busy_ = false; }

  uint64_t TransferUs(uint64_t bytes) const;  // without latency
  // Share of the time in which demand and writes used it, lately.
  double Utilisation(uint64_t now) const;
  uint64_t queued_bytes() const { return queued_bytes_; }  // of demand
  const LinkOptions& options() const { return options_; }
  const LinkCounts& counts() const { return counts_; }

 private:
  void Account(const LinkPiece& piece, uint64_t now, double us);

  const LinkOptions options_;
  const uint64_t piece_bytes_;
  bool busy_ = false;
  std::deque<LinkPiece> demands_;
  uint64_t queued_bytes_ = 0, write_backlog_ = 0;
  double fraction_us_ = 0;  // what rounding to microseconds left over
  double used_us_ = 0;      // by demand and writes, decayed
  uint64_t used_at_ = 0;
  LinkCounts counts_;
};

}  // namespace terrace::replay
