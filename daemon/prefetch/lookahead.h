// The future as engines announced it: which objects will be wanted, when, and how surely. Drives
// eviction (an exact next use) and prefetch, with the two windows of CachedAttention (Gao et al.,
// USENIX ATC 2024, arXiv:2403.19708) over the waiting queue.
//
// Objects are named by ObjectKey::Head64: a collision misdirects a prefetch and does no other harm.
// Times are on the owner's clock, which is monotonic; microseconds in the daemon and in replays.
//
// Believed is what came true: every announced use is judged some time after its request started, or
// when it is withdrawn or expires, by whether the object was wanted just then, and the probability
// of later hints of that source and confidence follows. Being wanted at any other time proves
// nothing: popular objects are.
//
// One thread. Memory is bounded by the limits, about 130 B an announced use.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "daemon/prefetch/hint_calibration.h"
#include "tiers/eviction/policy.h"

namespace terrace {

struct AnnouncedKey {
  uint64_t key_head = 0;
  float confidence = 1;  // 0 .. 1, as the source states it
};

struct Announcement {
  HintSource source = HintSource::kQueue;
  // Unique among the announcements of one source. Those of several sources with the same number
  // are about the same request: they start together.
  uint64_t request = 0;
  // Whose queue it waits in, above 0, and its place there: lower starts earlier. When one request
  // of a queue starts late or early, all behind it are taken to. 0: waits in none.
  uint64_t queue = 0;
  uint64_t order = 0;
  // When the objects are wanted: a time, kNeverUsed (a session that will not return), or
  // kUnknownUse: follows from the order and the pace of the queue, else from what another source
  // said of the request, else LookaheadOptions::default_wait.
  uint64_t eta = kUnknownUse;
  absl::Span<const AnnouncedKey> keys;  // in the order in which they are wanted
};

struct LookaheadOptions {
  size_t max_requests = 16384;
  size_t max_uses = size_t{1} << 18;  // of all requests together
  uint64_t default_wait = 1'000'000;
  // From the start of a request until its hints are judged; its demands may come an eighth of that
  // before it is said to start. Experts are judged when the next of their queue is due, which is
  // sooner: a step of a sequence ends with the next.
  uint64_t settle = 400'000;
  // Until so many hints of a source were judged, NextUse does not go by them: nothing stays, and
  // nothing leaves, on the word of somebody unknown.
  uint64_t trial_hints = 32;
  // What is overdue by more than this is forgotten: its engine is gone, or has lost it.
  uint64_t expire = 300'000'000;
};

// One announced use of an object.
struct FutureUse {
  uint64_t key_head = 0;
  uint64_t request = 0;
  HintSource source = HintSource::kQueue;
  uint64_t due = 0;       // never before now; kNeverUsed
  float probability = 0;  // that it comes true: calibrated
  float confidence = 0;   // as stated
};

class Lookahead {
 public:
  // Where a walk stands: (due as announced, number of the announcement, index of the key).
  struct Position {
    uint64_t due = 0, sequence = 0;
    uint32_t key = 0;
    friend auto operator<=>(const Position&, const Position&) = default;
  };

  Lookahead(const LookaheadOptions& options, std::function<uint64_t()> now);

  // Takes the place of what the source said of this request before. A key that is named twice
  // counts once. InvalidArgument (the field and its range) and ResourceExhausted (which limit)
  // leave everything as it was. O(keys log uses).
  absl::Status Announce(const Announcement& announcement);
  // The reason has gone: one source's, or everything about the request. Ignored when unknown.
  void Withdraw(HintSource source, uint64_t request);
  void Withdraw(uint64_t request);
  // Withdraws what waits in a queue and forgets its pace: its engine has gone.
  void EndQueue(uint64_t queue);
  // The request runs: its objects are wanted now, no longer in the future. Ignored when unknown.
  void Started(uint64_t request);
  // The object was demanded, whoever did, hit or miss. O(1).
  void Used(uint64_t key_head);

  // The earliest announced use that is at least so probable. Looks at up to eight of the object's
  // uses. O(log uses).
  std::optional<FutureUse> NextUse(uint64_t key_head, float min_probability = 0.5f) const;
  // Whether anybody still wants the object: the reason of a prefetch. kStarted: only requests that
  // started lately do, so its demand is about to come, or never will. O(1).
  enum class Standing { kGone, kStarted, kAnnounced };
  Standing StandingOf(uint64_t key_head) const;

  // The first use at or behind `*position`, of sources of that urgency class (see UrgencyClass), by
  // time and within a request in its order; moves the position behind it. nullopt at the end; uses
  // that never come are not walked. O(log requests).
  std::optional<FutureUse> Walk(int urgency_class, Position* position) const;
  // Where the object's earliest use lies: to resume a walk there. Of what is not announced, the
  // end.
  Position PositionOf(int urgency_class, uint64_t key_head) const;
  // Where a walker must resume: the earliest position that was announced in that class since its
  // last call (the end when none was). Each prefetcher is a walker of its own.
  size_t AddWalker();
  Position TakeEarliestNew(size_t walker, int urgency_class);

  // Up to when the announced objects fit in so many bytes, by time over all sources (objects that
  // are wanted twice count once, and those of `bytes_of` 0 are nowhere): kNeverUsed when all fit.
  // upper: prefetch window, what may be moved up by now. lower: eviction window, upper and lower
  // tier together; what is wanted later, or not at all, leaves first. O(uses inside).
  struct Windows {
    uint64_t prefetch_end = kNeverUsed;
    uint64_t eviction_end = kNeverUsed;
  };
  Windows ComputeWindows(uint64_t upper_bytes, uint64_t lower_bytes,
                         absl::FunctionRef<uint64_t(uint64_t key_head)> bytes_of) const;

  const HintCalibration& calibration() const { return calibration_; }
  size_t requests() const { return announced_.size(); }
  size_t uses() const { return uses_; }

  // Experts are wanted within milliseconds, queued requests and their documents within seconds, a
  // session perhaps: 0, 1 and 2. Earlier classes go first whatever their time.
  static constexpr int kUrgencyClasses = 3;
  static int UrgencyClass(HintSource source);

 private:
  struct Use {
    uint64_t key_head;
    float confidence;
  };
  struct Announced {
    HintSource source;
    uint64_t request, queue, order;
    uint64_t due;  // as announced: the lag of its queue is not in it
    uint64_t announced_at;
    std::vector<Use> uses;
  };
  struct UseAt {
    uint64_t due, sequence;
    uint32_t key;
    friend auto operator<=>(const UseAt&, const UseAt&) = default;
  };
  struct Object {
    uint64_t last_demand = 0;  // 0: never
    uint32_t settling = 0;     // uses of started requests that are not judged yet
    absl::btree_set<UseAt> uses;
  };
  // Announcements of a queue by place, and its pace.
  struct Queue {
    absl::btree_map<std::pair<uint64_t, uint64_t>, uint64_t> places;  // order, sequence -> due
    int64_t lag = 0;                                                  // of starts behind their due
    uint64_t interval = 0;                                            // between starts; 0: unknown
    uint64_t last_start = 0;
  };
  using Sequences = std::vector<uint64_t>;  // of one request, at most one a source

  absl::Status Check(const Announcement& announcement, size_t replaced_uses, bool known) const;
  uint64_t DueOf(const Announcement& announcement);
  uint64_t EffectiveDue(const Announced& announced) const;
  FutureUse Describe(const Announced& announced, uint32_t key) const;
  uint64_t FindSequence(HintSource source, uint64_t request) const;  // 0: none
  Announced Remove(uint64_t sequence);
  // `since`: the object must have been wanted then or later.
  void Judge(const Announced& announced, uint64_t since, bool settled);
  void JudgeEarlier(uint64_t sequence);  // removes it: withdrawn or expired
  void JudgeOldest();                    // of those that started
  void Settle();

  const LookaheadOptions options_;
  const std::function<uint64_t()> now_;
  uint64_t next_sequence_ = 1;
  size_t uses_ = 0;
  absl::flat_hash_map<uint64_t, Announced> announced_;  // by sequence
  absl::flat_hash_map<uint64_t, Sequences> by_request_;
  absl::flat_hash_map<uint64_t, Object> objects_;  // by key head
  absl::flat_hash_map<uint64_t, Queue> queues_;
  absl::btree_set<std::pair<uint64_t, uint64_t>> by_due_[kUrgencyClasses];  // due, sequence
  std::vector<std::array<Position, kUrgencyClasses>> earliest_new_;         // by walker
  struct Settling {
    uint64_t since;  // its objects must be wanted then or later
    Announced announced;
  };
  absl::btree_multimap<uint64_t, Settling> settling_;  // by when it is judged
  HintCalibration calibration_;
};

}  // namespace terrace
