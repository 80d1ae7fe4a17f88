// What to move up one link (NVMe to host, host to HBM) before anybody asks, in which order, and
// when to stop. Pure decisions over a Lookahead: the owner moves the bytes and reports what
// happened.
//
//   value = p * stall_saved - (1 - p) * (bytes / bandwidth * rho + victim_loss)
//
// with p the calibrated probability of the use and rho the utilisation of the link. Pieces are
// issued while the value is positive, by urgency class, within a class by earliest deadline; never
// when the object would arrive too late anyway (that is the demand's job) and never beyond the
// prefetch window (CachedAttention). The owner keeps at most one piece on its way and asks for the
// next only while no demand read waits, so demand waits for one piece at the most.
//
// Every prefetch is judged: timely, late (demand joined it), unused, cancelled, and whether what
// left for it was missed (pollution). A source whose prefetches cost more than they save is
// switched off and scored in shadow (see SourceAccount).
//
// One thread. Times are on the owner's clock, in microseconds. No call blocks or fails.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "daemon/prefetch/lookahead.h"
#include "daemon/prefetch/source_account.h"

namespace terrace {

struct PrefetchOptions {
  uint64_t piece_bytes = uint64_t{1} << 20;
  // What was not worth moving is looked at again after so long, and after up to 16 times as long
  // while nothing is.
  uint64_t review_us = 50'000;
  // Objects with pieces on their way or to come.
  size_t max_objects = 64;
  // While fewer prefetches of a source were judged, no more of its bytes may await judgement.
  uint64_t trial_verdicts = 32;
  uint64_t trial_bytes = uint64_t{64} << 20;
  // A link is never quite free: what moves for nothing may delay a demand by a piece.
  double least_utilisation = 0.1;
};

// The link as it is now.
struct PrefetchLink {
  double bytes_per_s = 0;  // above 0, as measured
  uint64_t latency_us = 0;
  double utilisation = 0;     // rho: by everything but prefetches, lately; 0 .. 1
  uint64_t queued_bytes = 0;  // that go before the next piece
};

// What the owner knows of an object.
struct PrefetchTarget {
  // 0: nothing to move. It is above already, or not below.
  uint64_t bytes = 0;
  // Saved if it is there in time: the cheaper of fetching and remaking it. 0: what the link needs.
  uint64_t stall_us = 0;
  // Expected loss through what would have to leave for it; 0 where there is room.
  uint64_t victim_loss_us = 0;
};

struct PrefetchPiece {
  uint64_t key_head = 0;
  uint64_t offset = 0, bytes = 0;
  uint64_t object_bytes = 0;
  uint64_t due = 0;  // of the object: what is wanted sooner must not leave for it
  HintSource source = HintSource::kQueue;
};

struct PrefetchCounters {
  uint64_t issued = 0, issued_bytes = 0;  // objects; bytes of issued pieces
  uint64_t timely = 0, late = 0, unused = 0, cancelled = 0, refused = 0;
  uint64_t pollution = 0;     // demand misses of what had left for a prefetch
  uint64_t shadow = 0;        // prefetches only imagined
  uint64_t unused_bytes = 0;  // moved for nothing
};

class Prefetcher {
 public:
  // `lookahead` must outlive it and be on the same clock.
  Prefetcher(const PrefetchOptions& options, Lookahead* lookahead, std::function<uint64_t()> now);

  // The next piece worth moving now; nullopt: none. Its first piece (offset 0) needs room: an owner
  // that finds none calls Refused. `window_end`: Lookahead::Windows::prefetch_end. `target` is
  // asked about announced objects. Amortised O(log n); a call looks at no more than 1024 uses.
  std::optional<PrefetchPiece> Next(const PrefetchLink& link, uint64_t window_end,
                                    absl::FunctionRef<PrefetchTarget(uint64_t key_head)> target);
  // No room for its first piece, or the read failed: the object is not on its way. Looked at again
  // at the next review.
  void Refused(uint64_t key_head);
  // A piece is there. True when the object is complete: it is in the upper tier from now on.
  bool Arrived(uint64_t key_head, uint64_t bytes);
  // Objects that nobody wants any more and whose unissued pieces never come: the owner frees their
  // room once pieces already issued have landed. O(objects on their way).
  std::vector<uint64_t> TakeCancelled();
  // The same of one object, for an owner that hands objects to its link whole (piece_bytes above
  // all of them) and has taken back what was not on its way: `arrived` of it, 0 .. 1, was moved for
  // nothing. Ignored when it is not on its way.
  void Cancelled(uint64_t key_head, double arrived);

  // The object is demanded: call for each demand, before looking for it in the upper tier. kJoined:
  // it is on its way, `issued_bytes` of it have been issued, and the rest is the demand's to issue;
  // the prefetcher has forgotten it.
  struct Demanded {
    enum class Outcome { kNotPrefetched, kTimely, kJoined } outcome = Outcome::kNotPrefetched;
    uint64_t issued_bytes = 0;
  };
  // `arrived`: how much of it has, 0 .. 1, where the owner knows better than by pieces issued.
  Demanded Demand(uint64_t key_head, std::optional<double> arrived = std::nullopt);
  // `victim` left the upper tier so that `key_head` may come; missing it would cost `stall_us`.
  void Displaced(uint64_t key_head, uint64_t victim, uint64_t stall_us);
  // The object left the upper tier, for whatever reason.
  void Left(uint64_t key_head);
  // The object came to lie below, where there was nothing to move before.
  void Appeared(uint64_t key_head);

  bool on(HintSource source) const { return account(source).on(); }
  const SourceAccount& account(HintSource source) const { return accounts_[Index(source)]; }
  const PrefetchCounters& counters(HintSource source) const { return counters_[Index(source)]; }
  size_t objects_on_their_way() const { return flights_.size(); }

 private:
  static constexpr size_t kMaxShadows = 4096, kMaxDisplaced = 4096;
  static constexpr int kUsesPerCall = 1024;

  struct Flight {
    HintSource source;
    int urgency;
    uint64_t due, bytes, issued, arrived;
    double gain_us, cost_us;  // if it is wanted; if it is not
  };
  struct Shadow {
    HintSource source;
    uint64_t ready_at;
    double gain_us, cost_us;
  };
  struct Loss {
    HintSource source;
    uint64_t stall_us;
  };
  using Ready = std::tuple<int, uint64_t, uint64_t>;  // urgency, due, key

  bool WorthMoving(const FutureUse& use, const PrefetchTarget& target, const PrefetchLink& link,
                   Flight* flight) const;
  void Find(int urgency, const PrefetchLink& link, uint64_t window_end,
            absl::FunctionRef<PrefetchTarget(uint64_t)> target, int* looks);
  std::optional<uint64_t> FirstReady(int urgency) const;
  PrefetchPiece Issue(uint64_t key_head);
  void Review();
  void JudgeUnused(const Flight& flight);
  void Imagine(uint64_t key_head, const Flight& flight, const PrefetchLink& link);
  void Judge(const Flight& flight, double gain_us, double cost_us);

  static size_t Index(HintSource source) { return static_cast<size_t>(source); }

  const PrefetchOptions options_;
  Lookahead* const lookahead_;
  const size_t walker_;
  const std::function<uint64_t()> now_;
  std::array<SourceAccount, kHintSources> accounts_;
  std::array<PrefetchCounters, kHintSources> counters_;
  std::array<uint64_t, kHintSources> unjudged_bytes_{};
  std::array<Lookahead::Position, Lookahead::kUrgencyClasses> cursors_;
  uint64_t reviewed_at_ = 0, review_us_;
  bool rejected_ = false;  // something that another time may be worth it, since the last review
  absl::flat_hash_map<uint64_t, Flight> flights_;  // by key head
  absl::btree_set<Ready> ready_;                   // flights with pieces to issue
  absl::flat_hash_map<uint64_t, Flight> landed_;   // complete, not wanted yet
  absl::flat_hash_map<uint64_t, Shadow> shadows_;
  std::array<uint64_t, kHintSources> shadow_free_at_{};  // of the imagined link
  absl::flat_hash_map<uint64_t, Loss> displaced_;
  std::deque<uint64_t> displaced_order_;
};

}  // namespace terrace
