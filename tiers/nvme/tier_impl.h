// The NVMe tier from inside. One class, its methods by what they do: tier_open.cc brings a store up
// and down, tier_io.cc writes and reads records, tier_seal.cc closes full segments,
// tier_reclaim.cc makes room. Methods run on the loop thread unless they say otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "tiers/nvme/health.h"
#include "tiers/nvme/io_scheduler.h"
#include "tiers/nvme/meta_store.h"
#include "tiers/nvme/meta_thread.h"
#include "tiers/nvme/nvme_tier.h"
#include "tiers/nvme/record_check.h"
#include "tiers/nvme/record_index.h"
#include "tiers/nvme/recovery.h"
#include "tiers/nvme/segment_file.h"
#include "tiers/nvme/segment_table.h"
#include "tiers/nvme/store_directory.h"
#include "tiers/nvme/write_budget.h"

namespace terrace {

namespace nvme {

// A segment that is giving way: the records of it that are written once more.
struct Drain {
  uint32_t segment_id = 0;
  std::vector<RecordId> keep;
  size_t next = 0;
  uint32_t in_flight = 0;
  bool give_up = false;                         // its room is not to be used again
  absl::flat_hash_map<RecordId, Place> moving;  // where copies that are being written will lie
};

}  // namespace nvme

class NvmeTier::Impl : public std::enable_shared_from_this<NvmeTier::Impl> {
 public:
  Impl(NvmeOptions options, PostFn post);

  absl::Status Open();
  absl::Status Recover(CountVisitor expect, RecordVisitor visit);
  void Stop();
  void Write(WriteRequest request);
  ReadTicket Read(ReadRequest request);
  void Reprioritize(ReadTicket ticket, IoPriority priority, uint64_t batch);
  void Cancel(ReadTicket ticket);
  uint64_t PayloadBytes(RecordId id) const;
  uint64_t StoredBytes(RecordId id) const {
    const nvme::RecordIndex::Record* record = index_.Find(id);
    return record == nullptr ? 0 : record->stored_bytes();
  }
  void Erase(RecordId id);
  void Touch(RecordId id);
  void SetPinned(RecordId id, bool pinned);
  absl::Status SetCapacity(uint64_t bytes);
  void KeepApart(std::set<uint32_t> tenant_ids);
  void Tick();
  bool in_service() const { return health_.in_service(); }
  const std::vector<ObjectKey>& lost() const { return lost_; }
  uint64_t pending_pins() const { return pending_pins_; }
  NvmeStats Stats() const;

  std::function<void(RecordId, const ObjectKey&)> on_dropped;

 private:
  using Segment = nvme::Segment;
  using Clock = std::chrono::steady_clock;

  // A place for a record.
  struct Placement {
    Segment* segment = nullptr;
    uint64_t offset = 0;
    uint64_t header_bytes = 0;
  };
  // A record on its way to the device: what the loop needs once it is durable.
  using Written = absl::AnyInvocable<void(uint32_t segment_id, const nvme::RecordEntry& entry,
                                          const absl::Status& status)>;
  using ReadDone = absl::AnyInvocable<void(absl::StatusOr<RecordMeta>)>;

  // tier_open.cc
  absl::Status LoadSegments(CountVisitor expect, RecordVisitor visit,
                            nvme::RecoveryFindings& findings, bool& indexed);
  void AddRecovered(const nvme::RecoveredSegment& found, const nvme::Notes& notes,
                    RecordVisitor visit, nvme::RecoveryFindings& findings);
  void AddEntry(Segment& segment, nvme::RecordEntry& entry, std::string_view encoded,
                const nvme::Notes& notes, RecordVisitor visit);
  std::vector<Segment*> SegmentsByAge();
  absl::Status CleanIndex(const nvme::Notes& notes, const nvme::RecoveryFindings& findings,
                          bool indexed);
  void ResumeOpenSegments();
  void ShrinkToCapacity();
  void IndexNextSegment(std::vector<uint32_t> segment_ids);
  void SaveForRestart();
  void SaveBudget();

  // tier_io.cc
  absl::Status Admit(const WriteRequest& request);
  bool Submit(WriteRequest& request);
  void SubmitWaiting();
  void Reject(WriteRequest& request, const absl::Status& status);
  void SubmitRecord(RecordMeta meta, const uint8_t* payload, IoPriority priority,
                    const Placement& placement, Written written);
  void FinishWrite(uint32_t segment_id, const nvme::RecordEntry& entry, const absl::Status& status,
                   Written& written);
  RecordId AddRecord(Segment& segment, const nvme::RecordEntry& entry);
  // `fingerprint` nullopt: whatever it is.
  ReadTicket ReadRecord(ReadRequest request, std::optional<Fingerprint> fingerprint);
  void FinishRead(RecordId id, const nvme::Place& place, absl::StatusOr<RecordMeta> meta,
                  ReadDone done);
  void Forget(RecordId id);
  void NoteRecord(RecordId id, nvme::Note note);
  nvme::Place PlaceOf(const nvme::RecordIndex::Record& record);
  void Probe();

  // tier_seal.cc
  std::optional<Placement> Place(const RecordMeta& meta, bool reclaiming);
  void Prepare(Segment& segment, bool fresh);
  void NotPrepared(const nvme::SegmentFile& file, const absl::Status& status);
  void CloseToWrites(Segment& segment);
  void SealIfDone(Segment& segment);
  void Seal(Segment& segment);
  void FinishSeal(std::shared_ptr<nvme::SegmentFile> file, std::string entries);
  std::string LiveEntries(const Segment& segment) const;

  // tier_reclaim.cc
  void MakeRoom();
  bool LongerThanSegment(const RecordMeta& meta) const;
  void EarnReclaimCredit(uint64_t bytes);
  std::vector<RecordId> LiveRecords(const Segment& segment) const;
  void CloseAll(const std::vector<Segment*>& segments);
  void GiveUpSegments();
  void BeginDrain(Segment& segment, bool give_up);
  void ContinueDrain();
  void ReadForDrain(RecordId id);
  void WriteOnceMore(RecordId id, RecordMeta meta, std::shared_ptr<kernels::AlignedBuffer> payload);
  void Moved(RecordId id, uint32_t segment_id, const nvme::RecordEntry& entry,
             const absl::Status& status);
  void EndDrain();
  void Recycle(Segment& segment, bool give_up);
  void Discard(Segment& segment);
  void Drop(RecordId id);

  const NvmeOptions options_;
  const PostFn post_;
  nvme::System& system_;
  nvme::StoreDirectory directory_;
  std::optional<nvme::SegmentTable> segments_;
  nvme::RecordIndex index_;
  std::optional<nvme::WriteBudget> budget_;
  nvme::Health health_;
  std::vector<nvme::FoundSegment> found_;  // between Open and Recover
  bool recovered_ = false;
  std::vector<ObjectKey> lost_;
  std::deque<WriteRequest> waiting_;  // for a segment to be had
  std::optional<nvme::Drain> drain_;
  bool making_room_ = false;
  double reclaim_credit_ = 0;  // bytes that may be written once more
  uint64_t next_sequence_ = 1;
  uint64_t live_bytes_ = 0;
  uint32_t queued_reads_ = 0;
  ReadTicket last_ticket_ = 0;
  uint64_t pending_pins_ = 0;
  NvmeStats stats_;  // counters and engine; Stats() fills in the rest
  bool stopped_ = false;
  // Of the meta thread: a row of a sealed segment was not written, and there may be one from when
  // it was not sealed.
  bool rows_behind_ = false;

  // The threads, in the order in which they are made; Stop() ends them in reverse.
  std::unique_ptr<nvme::MetaStore> store_;
  std::unique_ptr<nvme::MetaThread> meta_;
  std::unique_ptr<nvme::IoScheduler> io_;
};

}  // namespace terrace
