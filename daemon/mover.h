// Moves objects between tiers: the only file that sees catalog, tiers, codec and device together.
// Makes room in the host tier, and shrinks it while it serves (host_resize.cc); writes committed
// objects behind to NVMe (write_behind.cc); brings them back for a lease; moves them between host
// memory and a device's (device_moves.cc). Loop thread; nothing here blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "config/options.h"
#include "daemon/catalog.h"
#include "daemon/metrics.h"
#include "daemon/placement.h"
#include "daemon/recompute_model.h"
#include "daemon/tenant.h"
#include "daemon/transcoder.h"
#include "tiers/device_link.h"
#include "tiers/nvme/admission.h"
#include "tiers/nvme/nvme_tier.h"
#include "transport/service.h"

namespace terrace {

// Somebody who waits for a promotion: a slot on a session's ready board.
struct Waiter {
  SessionId session;
  uint32_t slot;
  bool operator==(const Waiter&) const = default;
};

// The copy in the tenant's part of the device's memory, also while it is on its way there.
struct DeviceCopy {
  MemoryCopy::Ptr memory;         // null: its room is being made
  DeviceLink::Ticket ticket = 0;  // of its way up; 0: it waits for the host copy, or is ready
  uint32_t parts_ready = 0;
  uint32_t lease_count = 0;
  bool failed = false;  // and its readers have not left yet
  bool demand = false;  // somebody asked for it
  std::vector<Waiter> waiters;

  bool ready() const { return memory != nullptr && memory->ready; }
};

// Told what becomes of copies in memory.
class HostListener {
 public:
  virtual ~HostListener() = default;
  virtual void Entered(ObjectId id) = 0;  // host memory; the eviction policy knows it from here on
  virtual void Left(ObjectId id) = 0;     // host memory and the device's; it was complete until now
  // A promotion ended. Whatever the mover does for it is done: it may be called.
  virtual void LoadEnded(const ObjectKey& key, const absl::Status& status) = 0;
};

class Mover {
 public:
  using MayLeave = absl::FunctionRef<bool(ObjectId)>;
  // `layouts` outlives the mover and only grows. `nvme` may be null: host tier only; then
  // `transcoder` may be, too.
  // `publish` stores a ready word on a board; it ignores sessions that are gone.
  Mover(Catalog& catalog, std::vector<Tenant>& tenants, const std::vector<ObjectLayout>& layouts,
        NvmeTier* nvme, Transcoder* transcoder, Metrics& metrics, const NvmeSection& nvme_options,
        std::function<void(const Waiter&, uint32_t word)> publish);

  // Before anything else; outlives the mover's use.
  void Listen(HostListener* listener) { listener_ = listener; }

  // What joins host memory and the tenants' device tiers. Before serving; outlives the mover's use.
  void UseDevice(DeviceLink* link) { device_link_ = link; }

  // Fills the catalog from the NVMe tier's records. Once, before serving. Fails as
  // NvmeTier::Recover does.
  absl::Status Recover();

  // Space for `bytes` of an object of this kind in the tenant's arena, evicting what placement
  // gives up. Never evicts what is leased, pinned, or being read by the NVMe tier, and only what
  // `may_leave`. ResourceExhausted: no room now; `retry_after_ms` is not 0 when waiting helps.
  absl::StatusOr<Extent> MakeRoom(uint16_t tenant, ObjectKind kind, uint64_t bytes,
                                  uint32_t& retry_after_ms, MayLeave may_leave = AnyMayLeave);

  // The entry was published: track it for eviction and queue it for NVMe.
  void Published(ObjectId id);
  // Somebody would store it who says what is before it in its prefix: that may have come since, or
  // be on its way, and then stays as long as this.
  void StoredAgain(ObjectId id, const ObjectKey& parent);
  // The entry has no host copy: bring it up, or down from the device, where it stays as well.
  // Several waiters join one read; `word` is what each board slot shows from now on.
  // ResourceExhausted when there is no room; `retry_after_ms` is not 0 when the arena is growing.
  // `layout` is the caller's, checked against the entry.
  absl::Status Promote(ObjectId id, uint32_t layout, IoPriority priority, uint64_t batch,
                       uint32_t& retry_after_ms, MayLeave may_leave = AnyMayLeave);
  bool loading(ObjectId id) const { return loading_.contains(id); }
  // Somebody who is that much in a hurry waits for an object that is on its way.
  void Hasten(ObjectId id, IoPriority priority, uint64_t batch);
  // Ends a promotion that nobody waits for, unless all of it is on its way already.
  void CancelPromotion(ObjectId id);
  // How much of a promotion has arrived, 0 .. 1.
  double LoadedShare(ObjectId id) const;
  // Whether an engine that asks for it can expect to get it.
  bool Reachable(const Entry& entry) const;
  // It was leased: it counts for more from now on, and one that was not worth writing may be now.
  void Touched(ObjectId id);
  void Join(ObjectId id, const Waiter& waiter);
  void Leave(ObjectId id, const Waiter& waiter);

  // One lease fewer. Frees what was only kept for the lease.
  void Unlease(ObjectId id);
  // Gone from every tier, as soon as nobody uses it.
  void Remove(ObjectId id);
  void SetPinned(ObjectId id, bool pinned);

  // The entry has no device copy: give it one, from host memory or by way of it. Where that leaves
  // nothing in host memory to do, the host copy goes. Fails as Promote does.
  absl::Status PromoteToDevice(ObjectId id, uint32_t layout, IoPriority priority, uint64_t batch,
                               uint32_t& retry_after_ms, MayLeave may_leave = AnyMayLeave);
  // Null: it has none. Valid until the mover is called again.
  const DeviceCopy* OnDevice(ObjectId id) const;
  // A lease more of the device copy. Until it is ready its progress goes to the waiter.
  void LeaseOnDevice(ObjectId id, const Waiter& waiter, IoPriority priority, uint64_t batch);
  void UnleaseOnDevice(ObjectId id);
  double DeviceBytesPerS() const { return device_link_->bytes_per_s(); }
  // Time until the device copy of so many bytes could be in host memory.
  uint32_t DescentUs(uint64_t bytes) const;
  // When it is next wanted, for what decides who leaves. Ignored when it is in no memory.
  void HintUse(ObjectId id, uint64_t next_use, float confidence);
  // It was used: of a prefix, the deepest first.
  void NoteUse(ObjectId id);

  // Reads every copy of the object back and checks it; a copy that does not check is dropped. The
  // host copy is checked before this returns; `done` runs when the record has been read too.
  struct VerifyOutcome {
    uint64_t bytes = 0;
    bool corrupt = false;
  };
  void Verify(ObjectId id, absl::AnyInvocable<void(VerifyOutcome)> done);

  // Objects whose bytes or pins are not durable yet.
  uint64_t pending_objects() const {
    return queued_objects_ + writing_objects_ + (nvme_ != nullptr ? nvme_->pending_pins() : 0);
  }
  uint64_t pending_bytes() const { return queued_bytes_ + writing_bytes_; }
  // What a read of the entry's record moves.
  uint64_t StoredBytes(const Entry& entry) const;
  // Promotions that engines wait for, and what all promotions still move.
  uint32_t demand_loads() const { return demand_loads_; }
  uint64_t loading_bytes() const { return loading_bytes_; }
  uint64_t demand_read_bytes() const { return demand_read_bytes_; }  // ever, of records
  double ReadBytesPerS() const;                                      // measured, or assumed
  // What making it again costs: as its engine said, else as engines usually say for such an
  // object. 0: unknown.
  uint32_t RemakeUs(const Entry& entry) const;
  // Time to bring so much of records up from NVMe behind everything already asked for.
  uint32_t EtaUs(uint64_t stored_bytes) const;
  // The same, with what a device takes that has nothing else to do.
  uint32_t FetchUs(uint64_t stored_bytes) const;
  // Every read tells how fast the device is. For who decides by that not to read: reads the record
  // of this object in the background, unless the speed was told a moment ago.
  void KeepLinkMeasured(ObjectId id);
  // From now on; a smaller one is reached step by step, Tick by Tick: evicting in policy order,
  // then moving what is left. What is leased stays where it is until the lease ends.
  absl::Status ResizeHost(uint16_t tenant, uint64_t bytes);
  // Whether tenants may use what others leave of their part (host.sharing). Once, before serving.
  void ShareFairly() { fair_ = true; }
  // What the tenant's own part is from now on; ends what it lent and borrowed.
  absl::Status SetHostShare(uint16_t tenant, uint64_t bytes);
  // What the tenant's records may take from now on, UINT64_MAX: no limit of its own. Its own
  // records give way, those longest unused first.
  void SetNvmeQuota(uint16_t tenant, uint64_t bytes);
  // Refreshes measured bandwidth, retries writes that found the tier's queue full, and brings tiers
  // nearer to a smaller capacity.
  void Tick();

 private:
  struct Loading {
    std::vector<Waiter> waiters;
    uint32_t parts_ready = 0;
    uint64_t stored_bytes = 0;  // of the record
    IoPriority priority = IoPriority::kDemand;
    uint64_t batch = 0;
    ReadTicket ticket = 0;
    std::shared_ptr<ObjectDecoding> decoding;  // of an encoded one
    bool from_device = false;                  // not from a record

    bool is_demand() const { return priority < IoPriority::kQueued; }
  };

  static bool AnyMayLeave(ObjectId) { return true; }
  // `down`: is on its way out of the device, and may be what memory should rather lose; Aborted
  // when it is.
  absl::StatusOr<Extent> MakeRoomFor(uint16_t tenant, ObjectKind kind, uint64_t bytes,
                                     uint32_t& retry_after_ms, MayLeave may_leave, ObjectId down);
  bool Evictable(ObjectId id) const;
  static Space SpaceOf(const Entry& entry);
  void EnterHost(ObjectId id);        // its host copy is complete
  MemoryCopy* MemoryOf(ObjectId id);  // complete or not; null: there is none
  // The object before `entry`, where it is in memory or on its way there.
  ObjectId ParentInMemory(const Entry& entry, const ObjectKey& parent);
  Loss LossOf(const Entry& entry) const;
  void Reprice(ObjectId id);  // its record came or went
  void EvictHostCopy(ObjectId id);
  void ShrinkHost(uint16_t tenant);
  // fair_share.cc
  bool AwaitsShare(Tenant& tenant, uint64_t bytes);
  void ShareHost();
  void PayBack(uint16_t tenant, uint64_t& unused_bytes, uint64_t& returning_bytes);
  void Lend(uint16_t tenant, uint64_t& unused_bytes, uint64_t returning_bytes);
  bool EvictForShrink(Tenant& tenant, uint64_t& budget);
  void MoveStrays(uint16_t tenant, uint64_t evict_budget);
  bool StartMove(ObjectId id);
  void FinishMove(ObjectId id, const Extent& to, absl::Span<const uint32_t> part_crcs);
  void DropHostCopy(ObjectId id);
  void AddRecovered(RecordId record, const RecordMeta& meta, std::vector<RecordId>& duplicates);
  void Enqueue(ObjectId id);
  void OfferToNvme(ObjectId id);
  void Unqueue(Entry& entry);
  bool HostCopyChecks(const Entry& entry) const;  // verify.cc
  void VerifyOnDevice(ObjectId id, absl::AnyInvocable<void(VerifyOutcome)> done);
  void VerifyRecord(ObjectId id, VerifyOutcome outcome,
                    absl::AnyInvocable<void(VerifyOutcome)> done);
  std::deque<ObjectId>* NextWriteQueue();
  void FeedWrites();
  void StartWrite(ObjectId id);
  void WriteEncoded(ObjectId id, const ObjectKey& key, absl::StatusOr<EncodedObject> encoded);
  void FinishWrite(ObjectId id, const ObjectKey& key, absl::StatusOr<RecordId> record);
  bool link_unknown() const { return read_bytes_per_s_ <= 0 && !link_measured_; }
  LinkState Link() const;
  void MeasureLink(ObjectId id);
  void NoteLinkSpeed();
  bool StartRead(ObjectId id, Loading& loading);
  // The read of a record that holds the object encoded; null when memory is short.
  std::shared_ptr<ObjectDecoding> ReadEncoded(ObjectId id, const ObjectLayout& layout,
                                              ReadRequest& request);
  void Progressed(ObjectId id, uint32_t parts_ready);
  void FinishRead(ObjectId id, absl::StatusOr<RecordMeta> meta);
  void EndLoad(ObjectId id, const absl::Status& status);
  void LoadFailed(ObjectId id, const Loading& loading, const absl::Status& status);
  // device_moves.cc
  absl::StatusOr<Extent> MakeDeviceRoom(ObjectId id, uint32_t& retry_after_ms, MayLeave may_leave);
  bool LeavesDevice(ObjectId id) const;
  absl::Status MoveDown(ObjectId id, uint32_t& retry_after_ms, MayLeave may_leave);
  void StartDescent(ObjectId id);
  void DescentFailed(ObjectId id, const absl::Status& status);
  void HostCopyEnded(ObjectId id);
  void StartRise(ObjectId id, DeviceCopy& copy);
  void FinishRise(ObjectId id, const absl::Status& status);
  void FailDeviceCopy(ObjectId id, DeviceCopy& copy);
  void EnterDevice(ObjectId id);
  void DropDeviceCopy(ObjectId id);
  void DropDuplicate(ObjectId id);
  // nvme_quota.cc: every record of an entry comes and goes here.
  void GainRecord(ObjectId id, RecordId record);
  void LoseRecord(ObjectId id);
  void KeepQuotasApart();
  bool KeepNvmeQuota(uint16_t tenant, uint64_t more_bytes, uint32_t max_drops);
  void RecordDropped(RecordId record, const ObjectKey& key);
  void RecordLost(const ObjectKey& key);
  // Frees the entry when it is in no tier and nobody holds it.
  void ReleaseIfGone(ObjectId id);

  Catalog& catalog_;
  std::vector<Tenant>& tenants_;
  const std::vector<ObjectLayout>& layouts_;
  NvmeTier* nvme_;
  Transcoder* transcoder_;
  Metrics& metrics_;
  std::function<void(const Waiter&, uint32_t)> publish_;

  std::vector<RecomputeModel> remake_models_;  // by interned fingerprint
  size_t write_turn_ = 0;                      // whose write queue is next
  uint64_t queued_objects_ = 0;  // entries still marked queued; the queues may hold stale ids
  uint64_t queued_bytes_ = 0;
  bool feeding_ = false;
  bool fair_ = false;
  uint64_t writing_objects_ = 0;
  uint64_t writing_bytes_ = 0;
  const uint64_t max_writing_bytes_;
  nvme::Admission admission_;
  absl::flat_hash_map<ObjectId, Loading> loading_;
  uint64_t loading_bytes_ = 0;  // of records
  uint32_t demand_loads_ = 0;
  uint64_t demand_read_bytes_ = 0;
  HostListener* listener_ = nullptr;
  DeviceLink* device_link_ = nullptr;  // null: no HBM tier
  absl::flat_hash_map<ObjectId, std::unique_ptr<DeviceCopy>> device_copies_;
  bool link_measured_ = false;
  uint32_t measuring_reads_ = 0;  // under way
  double read_bytes_per_s_ = 0;
  uint64_t link_noted_us_ = 0;  // when that changed; 0: never
};

}  // namespace terrace
