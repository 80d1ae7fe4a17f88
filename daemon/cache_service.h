// The daemon's answer to every call of the protocol: checks what a client says against limits,
// layouts and its tenant, keeps the session's books, and tells catalog and mover what to do.
// Loop thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/options.h"
#include "daemon/catalog.h"
#include "daemon/demand.h"
#include "daemon/live_options.h"
#include "daemon/metrics.h"
#include "daemon/mover.h"
#include "daemon/prefetch/driver.h"
#include "daemon/session.h"
#include "daemon/tenant.h"
#include "transport/service.h"

namespace terrace {

inline constexpr char kVersion[] = "0.1.0";

class CacheService final : public Service {
 public:
  // `options` are resolved. `nvme` may be null. All references outlive the service. `post`: to the
  // loop, from the threads that encode and decode.
  // `device_link`: where tenants have a device tier.
  CacheService(const Options& options, std::vector<Tenant>& tenants, NvmeTier* nvme,
               const PostFn& post, DeviceLink* device_link = nullptr);

  // Fills the catalog from what the NVMe tier holds. Once, before serving.
  absl::Status Recover() { return mover_.Recover(); }
  // Ends leases that ran out, refreshes estimates. Every few tens of milliseconds.
  void Tick();
  // What the options were resolved from: shares stay shares when sizes change. Before serving.
  void SetConfigured(Options configured) { live_ = LiveOptions(std::move(configured), options_); }
  // Applies what may change while serving of a configuration that was read anew, logs it, and names
  // what needs a restart. Changes nothing when it fails: InvalidArgument.
  absl::Status Reload(Options configured);
  uint64_t pending_objects() const { return mover_.pending_objects(); }
  uint64_t object_count() const { return catalog_.visible_count(); }

  // A session of a front-end inside the daemon (local_session.cc). Leases it takes without a time
  // limit last until it releases them. `on_ready` is told what its board shows; it must not call
  // back. NotFound: no such tenant.
  using OnReady = std::function<void(uint32_t slot, uint32_t word)>;
  absl::StatusOr<Welcome> OpenLocalSession(const std::string& tenant, std::string client_name,
                                           OnReady on_ready);
  // As Reserve of one object, but without a key, which its commit brings: it takes the place of
  // what the key names by then. Everybody sees the one or the other, and who reads the old object
  // goes on reading it.
  absl::StatusOr<ReserveResult> ReserveUnnamed(SessionId session, uint32_t layout_id,
                                               const ReserveItem& item);
  absl::Status CommitAs(SessionId session, const ObjectKey& key, const CommitItem& item);
  // Of status: counters of a front-end, which outlives the service's use.
  using Counters = std::vector<std::pair<std::string, uint64_t>>;
  void AddCounters(std::function<Counters()> counters) { more_counters_ = std::move(counters); }
  // One observer in all, of the session's tenant's objects of these layouts (Catalog::Observe).
  void Observe(CatalogObserver* observer, SessionId session, absl::Span<const uint32_t> layout_ids);
  // Where the tenant's bytes are mapped here, and what they take.
  const Tenant& TenantOfSession(SessionId session) {
    return tenants_[sessions_.Find(session)->tenant];
  }

  absl::StatusOr<Welcome> OpenSession(const PeerCredentials& peer,
                                      const ClientHello& hello) override;
  void CloseSession(SessionId session) override;
  absl::StatusOr<uint32_t> RegisterLayout(SessionId session, ObjectLayout layout,
                                          std::optional<KvGeometry> geometry) override;
  absl::Status Lookup(SessionId session, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                      std::vector<ExtentInfo>& extents) override;
  absl::Status Find(SessionId session, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                    std::vector<ExtentInfo>& extents) override;
  absl::StatusOr<TailMatch> MatchTail(SessionId session, uint32_t layout_id,
                                      const ObjectKey& parent,
                                      absl::Span<const ObjectKey> grains) override;
  absl::StatusOr<std::vector<ReserveResult>> Reserve(SessionId session, uint32_t layout_id,
                                                     absl::Span<const ReserveItem> items) override;
  absl::StatusOr<std::vector<absl::Status>> Commit(SessionId session,
                                                   absl::Span<const CommitItem> items) override;
  absl::Status Abort(SessionId session, absl::Span<const uint64_t> reservation_ids) override;
  absl::StatusOr<AcquireReply> Acquire(SessionId session, uint32_t layout_id,
                                       absl::Span<const ObjectKey> keys,
                                       const AcquireOptions& options) override;
  absl::Status Release(SessionId session, absl::Span<const uint64_t> lease_ids) override;
  absl::StatusOr<uint64_t> Renew(SessionId session, uint64_t lease_id, uint32_t ttl_ms) override;
  absl::StatusOr<std::vector<HintResult>> Hint(SessionId session,
                                               absl::Span<const HintItem> hints) override;
  absl::StatusOr<FlushReply> Flush(SessionId session) override;
  absl::StatusOr<StatusReply> Status(SessionId session) override;
  absl::StatusOr<ListReply> List(SessionId session, uint64_t cursor, uint32_t limit) override;
  absl::StatusOr<ObjectInfo> Show(SessionId session, const ObjectKey& key) override;
  absl::Status Remove(SessionId session, const ObjectKey& key) override;
  absl::Status Pin(SessionId session, const ObjectKey& key, bool pinned) override;
  absl::StatusOr<VerifyReply> Verify(SessionId session, uint64_t cursor) override;
  absl::StatusOr<ResizeReply> Resize(SessionId session, const ResizeRequest& request) override;
  absl::StatusOr<MissRatioCurveReply> MissRatioCurve(SessionId session,
                                                     const MissRatioQuery& query) override;

 private:
  absl::StatusOr<uint16_t> TenantOf(const PeerCredentials& peer, const std::string& wanted) const;
  absl::StatusOr<Session*> Get(SessionId session, const char* call);
  // Checks and counts a call that looks keys up.
  absl::StatusOr<Session*> BeginLookup(SessionId session, uint32_t layout_id, size_t keys,
                                       const char* call);
  absl::StatusOr<const ObjectLayout*> GetLayout(uint32_t layout_id) const;
  absl::Status CheckKeyCount(size_t count);
  std::optional<uint32_t> LayoutOf(const Entry& entry) const;
  absl::Status CheckAcquirable(const Entry& entry, const ObjectLayout& layout) const;
  absl::StatusOr<Welcome> OpenFor(uint16_t tenant, const PeerCredentials& peer,
                                  std::string client_name);
  ReserveResult ReserveOne(Session& session, uint32_t layout_id, const ReserveItem& item,
                           bool named);
  absl::Status TakePlace(Session& session, const ObjectKey& key, ObjectId id);
  absl::Status CommitOne(Session& session, const CommitItem& item);
  AcquireResult AcquireOne(Session& session, uint32_t layout_id, const ObjectKey& key,
                           const AcquireOptions& options, uint64_t batch, Lease& lease);
  bool LoadFailed(ObjectId id, bool on_device) const;
  TierId SourceOf(ObjectId id, bool on_device) const;
  uint64_t DeadlineUs(const Session& session, uint32_t ttl_ms) const;
  void EndLease(Session& session, const Lease& lease);
  void DropReservation(ObjectId id);
  // The visible object of this key if it is the session's tenant's, else kNoObject.
  ObjectId FindVisible(const Session& session, const ObjectKey& key) const;
  // The same, of this layout and not on a tier that is out of reach.
  ObjectId FindReadable(const Session& session, uint32_t layout_id, const ObjectKey& key) const;
  // What a hit in the tier saves, on average, against the next best way; 0: unknown.
  double HitSavesUs(uint16_t tenant, bool nvme) const;
  // Bytes on the device for a byte of the object: below 1 where objects are encoded.
  double StoredShare() const;
  ExtentInfo Describe(const Session& session, ObjectId id, uint64_t stored_before) const;
  struct Run;  // of lookup_calls.cc
  ExtentInfo Extend(const Session& session, uint32_t layout_id, ObjectId object, Run& run);
  void Advise(const Run& run, absl::Span<ExtentInfo> prefix);
  uint64_t AddMemoryTiers(StatusReply& reply) const;
  ObjectInfo Detail(ObjectId id) const;
  absl::Status Limit(const std::string& message);
  absl::Status Apply(LiveOptions::Change change);
  ResizeReply ResizeProgress(std::string_view tier, std::optional<uint16_t> tenant) const;

  const Options& options_;
  std::vector<Tenant>& tenants_;
  NvmeTier* nvme_;
  LiveOptions live_;
  const VerifyMode verify_;
  const uint64_t started_us_;
  Metrics metrics_;
  Catalog catalog_;
  SessionTable sessions_;
  std::vector<ObjectLayout> layouts_;
  std::vector<uint32_t> layout_fingerprints_;  // interned, by layout id
  absl::flat_hash_map<uint32_t, uint32_t> layout_by_fingerprint_;
  std::unique_ptr<Transcoder> transcoder_;  // where there is an NVMe tier
  Mover mover_;
  PrefetchDriver prefetch_;
  std::vector<Demand> demand_;  // by tenant
  uint64_t last_batch_ = 0;
  uint64_t lease_count_ = 0;
  uint64_t reservation_count_ = 0;
  std::function<Counters()> more_counters_ = [] { return Counters(); };
};

}  // namespace terrace
