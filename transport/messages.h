// The control protocol as plain structs: what a client asks and what the daemon answers. Both sides
// of transport/ speak these; Cap'n Proto types never leave the folder. All calls are short: nothing
// here waits for a disk (readiness is published in shared memory, see ReadyBoard).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "config/object_key.h"
#include "config/object_layout.h"

namespace terrace {

inline constexpr uint32_t kProtocolMajor = 1;  // must be equal on both sides
inline constexpr uint32_t kProtocolMinor = 1;  // may differ
inline constexpr uint32_t kMinorWithHbm = 1;   // earlier peers know no TierId::kHbm

enum class TierId : uint8_t { kNone = 0, kHost = 1, kNvme = 2, kHbm = 3 };
// Where a lease wants its objects.
enum class LeaseMemory : uint8_t { kHost = 0, kDevice = 1 };
enum class VerifyMode : uint8_t { kCrossing = 0, kAlways = 1 };

struct PeerCredentials {
  uint32_t uid = 0;
  int32_t pid = 0;
};

struct ClientHello {
  uint32_t protocol_major = kProtocolMajor;
  uint32_t protocol_minor = kProtocolMinor;
  std::string client_name;
  std::string tenant;  // empty: the only tenant this uid belongs to
};

// Descriptors are borrowed from the daemon on the serving side and owned by the receiver on the
// client side.
struct Welcome {
  uint32_t protocol_major = kProtocolMajor;
  uint32_t protocol_minor = kProtocolMinor;
  std::string server_version;
  std::vector<std::string> features;
  uint64_t session_id = 0;
  std::string tenant;
  Salt salt{};
  VerifyMode verify = VerifyMode::kCrossing;
  uint32_t max_keys_per_call = 0;
  uint32_t default_lease_ttl_ms = 0;
  uint64_t max_lease_ttl_ms = 0;
  uint64_t host_capacity_bytes = 0;  // size of the tenant's memfd
  int segment_fd = -1;               // tenant's arena, read-write
  int board_fd = -1;                 // ReadyBoard of this session, read-only
  uint32_t board_slots = 0;
  int ready_event_fd = -1;             // eventfd, written whenever the board changes
  uint64_t device_capacity_bytes = 0;  // of the tenant's part of HBM; 0: there is none
  int device_fd = -1;                  // that part, read-only; -1: its memory cannot be mapped
};

// One 32-bit atomic word a leased object, in a memfd that only the daemon can write:
// bits 31..24 state, bits 23..0 number of leading parts that are ready. The daemon futex-wakes the
// word after each change.
enum class ReadyState : uint8_t { kFree = 0, kLoading = 1, kReady = 2, kFailed = 3 };
inline constexpr uint32_t MakeReadyWord(ReadyState state, uint32_t parts) {
  return static_cast<uint32_t>(state) << 24 | parts;
}
inline constexpr ReadyState ReadyWordState(uint32_t word) {
  return static_cast<ReadyState>(word >> 24);
}
inline constexpr uint32_t ReadyWordParts(uint32_t word) { return word & 0xffffffu; }

struct ExtentInfo {     // 16 bytes; `lookup` answers one per matched key
  uint64_t bytes = 0;   // payload
  uint32_t eta_us = 0;  // until the whole payload could be in the host tier
  uint16_t token_count = 0;
  TierId tier = TierId::kNone;  // fastest tier that holds it
  uint8_t flags = 0;            // kFlagDurable, kFlagPinned, kFlagRecompute
};
inline constexpr uint8_t kFlagDurable = 1;
inline constexpr uint8_t kFlagPinned = 2;
// Making it again, and all that comes behind it in the same lookup, is expected to be faster. In
// the answer to a find: of keys that build on each other, the leading run that is there.
inline constexpr uint8_t kFlagRecompute = 4;

struct TailMatch {
  bool found = false;
  ObjectKey key;                // of the object that holds the grains
  uint32_t matched_grains = 0;  // leading grains of the query that it holds (by filter: verify with
                                // the identity part once it is loaded)
  uint32_t grain_count = 0;     // of the object
  ExtentInfo info;
};

struct ReserveItem {
  ObjectKey key;
  ObjectKey parent;  // zero: none
  uint32_t token_count = 1;
  uint32_t grain_count = 0;
  uint32_t cost_us = 0;  // to remake it; 0 = unknown
  // Tokens before it in its sequence; of an object without grains, objects before it; of an expert,
  // its layer. kUnknownPosition: not known.
  uint32_t position = 0;
};
struct ReserveResult {
  absl::Status status;  // AlreadyExists: stored or being stored by someone else.
                        // ResourceExhausted: no room now; retry_after_ms > 0 when waiting helps
  uint64_t reservation_id = 0;
  uint64_t offset = 0;  // of the payload in the tenant's segment
  uint32_t retry_after_ms = 0;
};

struct CommitItem {
  uint64_t reservation_id = 0;
  std::vector<uint32_t> part_crcs;         // PartCount() entries, CRC32C of each part
  std::vector<GrainFilter> grain_filters;  // of grain keys 1 .. grain_count-1; empty when
                                           // grain_count <= 1
};

struct AcquireOptions {
  uint32_t ttl_ms = 0;   // 0: default
  uint8_t priority = 0;  // IoPriority
  LeaseMemory memory = LeaseMemory::kHost;
};
struct AcquireResult {
  // NotFound, ResourceExhausted, FailedPrecondition (fingerprint; no HBM tier)
  absl::Status status;
  uint64_t offset = 0;  // in the tenant's segment, or its part of the device's memory
  uint64_t payload_bytes = 0;
  uint32_t token_count = 0;
  uint32_t grain_count = 0;
  uint32_t board_slot = 0;
  TierId source = TierId::kNone;
  uint32_t retry_after_ms = 0;      // as of ReserveResult
  std::vector<uint32_t> part_crcs;  // when verify is kAlways and the object is in the host tier
};
struct AcquireReply {
  uint64_t lease_id = 0;     // one lease covers all objects that were acquired; 0 when none was
  uint64_t deadline_us = 0;  // CLOCK_MONOTONIC
  std::vector<AcquireResult> results;
};

// What an engine says of the future. A hint never blocks and promises nothing: it steers eviction,
// and brings objects up when that is expected to pay.
enum class HintKind : uint8_t {
  kQueue = 0,      // a waiting request
  kDocuments = 1,  // what a retrieval found and may soon be asked for
  kSession = 2,    // an idle conversation, expected to return
  kExperts = 3,    // weights that the next layers or tokens are expected to route to
  kWithdraw = 4,   // the request is gone, or was served: forget what was said of it
};
// Each object's own layout, as far as a client of this daemon has registered it.
inline constexpr uint32_t kAnyLayout = 0xffffffffu;
inline constexpr uint64_t kMaxHintAheadUs = uint64_t{24} * 3600 * 1000 * 1000;  // a day

struct HintItem {
  HintKind kind = HintKind::kQueue;
  // Names the reason within the session: a later hint of the kind takes the place of this one, and
  // hints of several kinds with one id are about one request.
  uint64_t request_id = 0;
  uint32_t order = 0;        // place in the queue, 0 is served next; places may be shared
  uint64_t eta_us = 0;       // until the first key is wanted, from now; 0: unknown
  uint64_t deadline_us = 0;  // after which it is no longer wanted, from now; 0: none
  float confidence = 1;      // 0 .. 1 that it is wanted at all
  uint32_t layout_id = kAnyLayout;
  absl::Span<const ObjectKey> keys;  // in order of need; borrowed for the call; none to withdraw
};
struct HintResult {
  // ResourceExhausted: limits.max_hints_per_session, the leading `accepted` keys were taken all the
  // same; or more than the daemon keeps of all sessions. To withdraw what is unknown is no error.
  absl::Status status;
  uint32_t accepted = 0;  // keys from now on expected, stored already or not
};

struct FlushReply {
  uint64_t pending_objects = 0;  // committed before the call and not yet durable (or given up)
  uint64_t pending_bytes = 0;
};

struct ObjectInfo {
  ObjectKey key, parent;
  Fingerprint fingerprint{};
  ObjectKind kind = ObjectKind::kKv;
  uint32_t token_count = 0, grain_count = 0, cost_us = 0, part_count = 0;
  uint64_t payload_bytes = 0;
  bool in_host = false, in_nvme = false, pinned = false, in_hbm = false;
  uint32_t lease_count = 0;
};

struct ListReply {
  std::vector<ObjectInfo> objects;
  uint64_t next_cursor = 0;  // 0: end
};

struct VerifyReply {         // one step of reading everything back
  uint64_t next_cursor = 0;  // 0: end
  uint64_t checked = 0, corrupt = 0, skipped = 0, bytes = 0;
  std::vector<ObjectKey> corrupt_keys;
};

struct ResizeRequest {
  std::string tier;    // "host", "nvme"
  std::string tenant;  // empty: the whole tier
  uint64_t bytes = 0;  // wanted; 0: changes nothing, tells how far the last one is
  // Not 0: a share, 1 .. 100, as in the configuration, instead of `bytes`.
  uint32_t percent = 0;
};
struct ResizeReply {
  uint64_t current_bytes = 0, target_bytes = 0;
  bool done = false;                  // current is target, and nothing is above it
  uint64_t held_by_leases_bytes = 0;  // in the way until their leases end
};

struct MissRatioQuery {
  std::string tier;    // "host", "nvme"
  std::string tenant;  // empty: the session's own
};
struct MissRatioPoint {
  uint64_t bytes = 0;                   // size of the tier
  float by_accesses = 0, by_bytes = 0;  // share that misses it, 0 .. 1
};
struct TierCapacity {
  std::string tier;
  uint64_t bytes = 0;
};
struct MissRatioCurveReply {
  std::vector<MissRatioPoint> points;    // by ascending bytes, at most 4,096
  uint64_t accesses = 0, sampled = 0;    // seen, and of these looked at
  std::vector<TierCapacity> capacities;  // as they are now, fastest first
  double accesses_per_hour = 0;
  // What a hit in the tier saves, on average, over the next best way; 0: unknown.
  double hit_saves_us = 0;
};

struct TierStatus {
  std::string name;    // "hbm", "host", "nvme"
  std::string detail;  // engine, page size, health
  uint64_t capacity_bytes = 0, used_bytes = 0, objects = 0;
  uint64_t populated_bytes = 0, huge_page_bytes = 0;
};
struct SessionStatus {
  uint64_t id = 0;
  int32_t pid = 0;
  uint32_t uid = 0;
  std::string client_name, tenant;
  uint64_t leases = 0, reservations = 0, age_ms = 0;
};
struct StatusReply {
  std::string version;
  int32_t pid = 0;
  uint64_t uptime_ms = 0;
  std::string socket_path, state_dir;
  VerifyMode verify = VerifyMode::kCrossing;
  std::vector<TierStatus> tiers;
  std::vector<SessionStatus> sessions;
  uint64_t objects = 0, leases = 0, reservations = 0;
  // Name -> value, in a stable order: lookup_hits, lookup_misses, ... (see daemon/metrics.h)
  std::vector<std::pair<std::string, uint64_t>> counters;
};

}  // namespace terrace
