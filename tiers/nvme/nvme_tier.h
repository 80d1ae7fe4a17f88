// The NVMe tier: append-only segment files read and written with O_DIRECT through io_uring, with
// record metadata in RocksDB. It moves opaque payloads cut into checksummed parts; it knows keys
// only as names. Formats: docs/formats/segment.md.
//
// Threads: every public method is called on the loop thread and never blocks (Open and the
// destructor excepted). One io thread owns the ring and blocks in it; one meta thread owns RocksDB
// writes. Callbacks run on the loop through `post`.
//
// Durability order: payload and header written (O_DIRECT) -> fdatasync -> RocksDB row -> `done`.
// A record that has a row is whole; a row whose header or parts do not check is DataLoss on read,
// dropped and counted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/object_key.h"
#include "config/object_layout.h"
#include "config/post.h"
#include "tiers/nvme/io_engine.h"

namespace terrace {

namespace nvme {
class System;
}

// What gives way when the tier is full.
enum class ReclaimPolicy : uint8_t {
  // What was used since it was written is written once more instead of dropped, up to 6% of
  // what is written anyway; among segments, cost-benefit (Rosenblum & Ousterhout, LFS, 1992).
  kReuse,
  kFifo,  // the oldest segment, whole
};

struct NvmeOptions {
  std::string directory;  // created if absent
  // Hard limit on segment files, at all times but while they are brought down to a smaller one.
  uint64_t capacity_bytes = 0;
  uint64_t segment_bytes = 64 << 20;
  uint32_t queue_depth = 16;
  uint64_t piece_bytes = 1 << 20;                // one I/O; what a demand read may wait behind
  uint64_t max_pending_write_bytes = 256 << 20;  // more queued than this: writes are rejected
  uint64_t read_limit_bytes_per_s = 0;           // 0: no limit
  // Bytes written to the device in any 24 hours, everything included; 0: no limit.
  uint64_t write_budget_bytes_per_day = 0;
  ReclaimPolicy reclaim = ReclaimPolicy::kReuse;
  nvme::EngineChoice engine = nvme::EngineChoice::kAuto;
  nvme::System* system = nullptr;  // null: the real one; outlives the tier
};

inline constexpr uint8_t kRecordPinned = 1;  // of RecordMeta::flags

// How long a record is expected to be wanted. Records that die together lie together: a segment
// holds one class.
enum class Lifetime : uint8_t { kImmutable = 0, kHot, kCold };  // expert weights; reused KV; new KV
inline constexpr int kLifetimes = 3;

// Everything a record says about its object; stored in its header, returned at recovery.
struct RecordMeta {
  ObjectKey key;
  ObjectKey parent;  // zero when none
  Fingerprint fingerprint{};
  ObjectKind kind = ObjectKind::kKv;
  uint8_t flags = 0;  // kRecordPinned
  Lifetime lifetime = Lifetime::kCold;
  uint32_t tenant_id = 0;  // stable hash of the tenant's name
  uint32_t token_count = 0;
  uint32_t grain_count = 0;
  uint32_t cost_us = 0;
  uint64_t payload_bytes = 0;
  // Of an encoded object: its length once decoded, above payload_bytes. 0: stored as it is.
  uint64_t decoded_bytes = 0;
  uint64_t object_bytes() const { return decoded_bytes != 0 ? decoded_bytes : payload_bytes; }
  // Of grains 1 .. grain_count-1, for partial matches: kept in memory by the catalog, and in the
  // RocksDB row.
  std::vector<GrainFilter> grain_filters;
  // In the record's header only: empty in Recover.
  std::vector<uint64_t> part_ends;  // exclusive end of each part, ascending, last <= payload_bytes
  std::vector<uint32_t> part_crcs;  // CRC32C of each part (padding between parts is not covered)
};

// Where a durable record lives. Dense id, reused after Erase. 32 bits.
using RecordId = uint32_t;
inline constexpr RecordId kNoRecord = 0xffffffffu;

// kQueued is for reads ahead: one piece at a time.
enum class IoPriority : uint8_t { kDemand = 0, kNextLayer, kLaterLayers, kQueued, kBackground };

using ReadTicket = uint64_t;  // of a read under way; 0 is none's

struct ReadRequest {
  RecordId record = kNoRecord;
  ObjectKey key;                   // compared with the stored 256-bit key
  Fingerprint fingerprint{};       // compared too
  uint8_t* destination = nullptr;  // 4 KiB aligned, room for payload_bytes rounded up to 4 KiB
  IoPriority priority = IoPriority::kDemand;
  // Reads of one batch advance together, part by part: all part 0s, then all part 1s, ...
  uint64_t batch = 0;
  // Parts [0, n) are in `destination` and their checksums match. Ascending n.
  std::function<void(uint32_t parts_ready)> on_progress;
  // Ok with the record's meta; DataLoss (the record has been erased); Unavailable (stopping);
  // Cancelled.
  absl::AnyInvocable<void(absl::StatusOr<RecordMeta>)> done;
};

struct WriteRequest {
  RecordMeta meta;
  const uint8_t* payload = nullptr;  // 4 KiB aligned; readable to payload_bytes rounded up to 4
                                     // KiB; must stay unchanged until `done`
  IoPriority priority = IoPriority::kBackground;
  // The record's id once durable. ResourceExhausted: queue full, write budget spent, disk full, or
  // no space that may be reclaimed. DataLoss: the payload is not what its checksums say.
  absl::AnyInvocable<void(absl::StatusOr<RecordId>)> done;
};

struct NvmeStats {
  uint64_t capacity_bytes = 0, used_bytes = 0, live_bytes = 0, records = 0, segments = 0;
  uint64_t clean_segments = 0;
  // Payload that was written and read; everything that went to the device: headers, footers,
  // padding, what was written once more (of which the payload is reinserted_bytes).
  uint64_t written_bytes = 0, read_bytes = 0, device_written_bytes = 0, reinserted_bytes = 0;
  uint64_t writes_rejected = 0, budget_rejected = 0;  // the latter among the former
  uint64_t read_errors = 0, write_errors = 0;
  uint64_t corrupt_records = 0;  // did not check when they were read
  uint64_t torn_records = 0;     // found at the start: their write had never ended
  uint64_t lost_records = 0;     // found at the start: their segment was gone or cut short
  uint64_t reclaimed_segments = 0, sealed_segments = 0, pending_write_bytes = 0;
  double read_bytes_per_s = 0, write_bytes_per_s = 0;  // measured, for ETAs
  std::string engine;                                  // "io_uring (single_issuer, defer_taskrun)"
  std::string health;  // "ok", "read-only: ...", "out of service: ..."
};

class NvmeTier {
 public:
  using RecordVisitor = absl::FunctionRef<void(RecordId, RecordMeta&)>;  // may take the meta
  using CountVisitor = absl::FunctionRef<void(uint64_t records)>;

  // Takes the directory's lock (FailedPrecondition if another live daemon holds it) and opens or
  // creates the store. FailedPrecondition for a store of another version, which is left as it is.
  // Blocks.
  static absl::StatusOr<std::unique_ptr<NvmeTier>> Open(NvmeOptions options, PostFn post);
  // Finishes the writes already queued, then stops the threads. Blocks.
  ~NvmeTier();

  // Loads the index: tells about how many records there are, then visits every durable one in no
  // particular order. Once, after Open and before anything else. An index that is lost or damaged
  // is made anew, from segment footers, and from records where a segment has no footer. Blocks.
  absl::Status Recover(CountVisitor expect, RecordVisitor visit);
  // Keys of durable records that Recover found to be gone with their segment.
  const std::vector<ObjectKey>& lost() const;

  void Write(WriteRequest request);
  // A name for Reprioritize and Cancel.
  ReadTicket Read(ReadRequest request);
  // What is not on its way yet of that read goes in another class and batch. Ignored when it is
  // over, as Cancel is.
  void Reprioritize(ReadTicket ticket, IoPriority priority, uint64_t batch);
  // Nothing more of it is moved: `done` gets Cancelled, or what it would have had if all of it was
  // on its way already.
  void Cancel(ReadTicket ticket);
  // What a read of the record needs room for, before it is rounded up. 0 when there is no such
  // record.
  uint64_t PayloadBytes(RecordId record) const;
  // What the record takes of a segment, header included; 0 when there is no such record.
  uint64_t StoredBytes(RecordId record) const;
  // Forgets the record: gone from the index now, from RocksDB soon, its space reclaimed later.
  void Erase(RecordId record);
  // Called on the loop before a segment is reclaimed, once a record dropped with it. The owner
  // must stop using the id. A record being read is never dropped.
  void OnDropped(std::function<void(RecordId, const ObjectKey&)> callback);
  // A hint for reclamation: the record was used.
  void Touch(RecordId record);
  // A pinned record is not dropped. Remembered across restarts, once the index has been written.
  void SetPinned(RecordId record, bool pinned);
  // Pins on their way to the index.
  uint64_t pending_pins() const;
  // False after a storm of errors, until a probe of the device succeeds: reads fail with
  // Unavailable and writes with ResourceExhausted at once.
  bool in_service() const;
  // From now on. When it is smaller than what segments take, Tick() brings them down in the order
  // in which they give way anyway, but for those with records that are read or pinned.
  // InvalidArgument: less than two segments, or more segments than the process may open.
  absl::Status SetCapacity(uint64_t bytes);
  // Records of these tenants lie in segments of their own, as far as there are enough: what one of
  // them writes and drops takes no room from another. Best before Recover.
  void KeepApart(std::set<uint32_t> tenant_ids);
  // To be called some times a second: probes a device that is out of service, gives up segments
  // beyond the capacity.
  void Tick();

  NvmeStats Stats() const;

 private:
  class Impl;
  explicit NvmeTier(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // closures on their way to the loop hold it too
};

}  // namespace terrace
