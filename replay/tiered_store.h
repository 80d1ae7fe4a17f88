// HBM, host memory and NVMe on a virtual clock, moved by the daemon's own code: eviction policies,
// Lookahead, Prefetcher and VictimBuffer decide, two VirtualLinks take the time. Tiers are
// exclusive: what HBM evicts goes down to the host, what the host evicts is on NVMe, where
// everything is in the end. Copies down run beside those up and are only counted.
//
// The same store is the baseline: under "lru", and told nothing, it is LRU on every tier over the
// same bytes. Memory grows with the distinct objects of the trace. One thread; deterministic.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "daemon/prefetch/lookahead.h"
#include "daemon/prefetch/prefetcher.h"
#include "daemon/prefetch/return_rate.h"
#include "replay/trace.h"
#include "replay/virtual_link.h"
#include "tiers/eviction/policy.h"
#include "tiers/victim_buffer.h"

namespace terrace::replay {

struct TieredStoreOptions {
  uint64_t hbm_bytes = 0, host_bytes = 0;
  LinkOptions pcie{25e9, 10};  // host to HBM
  LinkOptions nvme{3e9, 80};   // NVMe to host, and back for writes
  std::string policy = "lru";  // of HBM, and of HBM and host together: see memory_policy_
  uint64_t piece_bytes = uint64_t{1} << 20;
  double unit_bytes = 16384;  // bytes of a token or an expert
  double victim_share = 0.5;  // of the host, that its victim buffer may fill
  uint64_t bucket_us = 20'000;
  bool prefixes = false;
  uint32_t layers = 1;
  uint64_t seed = 1;
};

struct TieredCounts {
  uint64_t accesses = 0;
  // Where demand found the object: joined is what was on its way up already.
  uint64_t hbm = 0, joined = 0, host = 0, nvme = 0, created = 0;
  uint64_t bypassed = 0;  // no room in HBM beside what the request itself wants
  uint64_t down_bytes = 0;
  uint64_t stall_us = 0;
  // Victim buffer: objects held, moved up in buckets; of those, wanted after and during the move.
  uint64_t victims = 0, buckets = 0, bucket_objects = 0, bucket_timely = 0, bucket_late = 0;
};

class TieredStore {
 public:
  // Fails as NewPolicy does.
  static absl::StatusOr<std::unique_ptr<TieredStore>> Create(const TieredStoreOptions& options);

  uint64_t now() const { return now_; }
  void RunUntil(uint64_t time);

  // As Lookahead::Announce.
  absl::Status Announce(const Announcement& announcement);
  // The request starts; `keys` as announced.
  void Started(uint64_t request, absl::Span<const AnnouncedKey> keys);

  // Wants all of the accesses in HBM, and runs until they are: what there is to find is moved up,
  // what is new has its room. All are pinned until Finish. The size that was found, in the trace's
  // unit. Internal when the store is stuck: a defect.
  absl::StatusOr<uint64_t> Demand(absl::Span<const Access> accesses);
  // What was demanded was used, and what is new exists now.
  void Finish(absl::Span<const Access> accesses);

  const TieredCounts& counts() const { return counts_; }
  const VirtualLink& pcie() const { return pcie_; }
  const VirtualLink& nvme() const { return nvme_; }
  const Prefetcher& to_hbm() const { return to_hbm_; }
  const Prefetcher& to_host() const { return to_host_; }
  const Lookahead& lookahead() const { return lookahead_; }
  // Internal unless every byte is accounted for where it is.
  absl::Status CheckBytes() const;

 private:
  // kBulk: of a bucket that is about to move.
  enum class Place : uint8_t { kNowhere, kNvme, kHost, kVictim, kBulk, kHbm };
  // A transfer of the object, or of the rest of one, up one link.
  struct Move {
    bool active = false;
    bool has_room = false;  // is accounted for in the tier above
    uint32_t generation = 0;
    uint64_t issued = 0, landed = 0;
  };
  struct Object {
    uint64_t key = 0, bytes = 0, size = 0;
    TrackInfo info;
    Place place = Place::kNowhere;
    bool waited_for = false;  // by the demand that runs
    bool by_bucket = false;   // came up in a bucket and was not wanted yet
    bool tracked_hbm = false, tracked_memory = false;
    uint64_t pinned_by = 0;  // the number of the demand
    PolicyId parent = kNoPolicyId;
    Move to_hbm, to_host;
  };
  enum class EventKind : uint8_t {
    kPcieFree,
    kPcieLanded,
    kNvmeFree,
    kNvmeLanded,
    kBucket,
    kReview
  };
  struct Event {
    uint64_t time, number;
    EventKind kind;
    LinkPiece piece;
    bool operator>(const Event& other) const {
      return std::pair(time, number) > std::pair(other.time, other.number);
    }
  };

  explicit TieredStore(const TieredStoreOptions& options);

  void Schedule(uint64_t time, EventKind kind, const LinkPiece& piece = {});
  void RunOne();
  void Pump();
  void ScheduleReview();
  void ScheduleBucket();
  void FreeCancelled();
  std::optional<LinkPiece> NextToHbm();
  std::optional<LinkPiece> NextOfBucket();
  std::optional<LinkPiece> NextToHost();
  PrefetchLink StateOf(const VirtualLink& link) const;

  PolicyId Find(const Access& access, PolicyId parent);
  void DemandOne(PolicyId id);
  void DemandFromNvme(PolicyId id);
  void BeginToHbm(PolicyId id, bool has_room);
  void LandedInHbm(const LinkPiece& piece);
  void LandedInHost(const LinkPiece& piece);
  void EnterHbm(PolicyId id);
  void LeaveHost(PolicyId id);

  // `use`: of the prefetch that wants the room; null for a demand.
  bool MakeHbmRoom(uint64_t bytes, const PrefetchPiece* use);
  // `down`: what comes down from HBM, and may be what memory should rather lose.
  bool MakeHostRoom(uint64_t bytes, const PrefetchPiece* use, PolicyId down = kNoPolicyId);
  bool MayLeave(const Object& object, const PrefetchPiece* use) const;
  void MoveDown(PolicyId id);
  void TrackInMemory(PolicyId id);
  void TrackInHbm(PolicyId id);
  void HintOf(PolicyId id);
  TrackInfo InfoOf(PolicyId id, bool Object::*tracked) const;

  const TieredStoreOptions options_;
  uint64_t now_ = 0, next_event_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  bool review_scheduled_ = false;
  uint64_t bucket_scheduled_ = 0;  // the event that is next to come; 0: none
  VirtualLink pcie_, nvme_;
  Lookahead lookahead_;
  Prefetcher to_hbm_, to_host_;
  ReturnRate hbm_returns_, host_returns_;
  VictimBuffer victims_;
  std::deque<VictimBuffer::Entry> bulk_;  // of buckets on their way up
  Lookahead::Windows windows_;
  bool windows_stale_ = false;
  uint64_t largest_bytes_ = 0;  // of an object
  // What leaves HBM; what leaves memory. The latter orders what is in HBM and in the host alike,
  // for tiers are exclusive: one of the host alone would see no use, only what comes down.
  std::unique_ptr<EvictionPolicy> hbm_policy_, memory_policy_;
  uint64_t hbm_used_ = 0, host_used_ = 0;  // by objects, and by rooms of moves
  size_t hbm_objects_ = 0, host_objects_ = 0;
  uint64_t demand_ = 0;   // the number of the one that runs
  uint64_t waiting_ = 0;  // objects that it waits for
  absl::flat_hash_map<uint64_t, PolicyId> ids_;
  std::deque<Object> objects_;  // by id
  TieredCounts counts_;
};

}  // namespace terrace::replay
