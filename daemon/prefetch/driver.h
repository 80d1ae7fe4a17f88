// Where hints meet the cache: tells the eviction policy when objects are next wanted, and moves
// what the Prefetcher finds worth it from NVMe to host memory ahead of its demand, one object
// behind the other, at IoPriority::kQueued. Loop thread; nothing here blocks.
//
// What somebody wants sooner never leaves for a prefetch. Demand joins a prefetch that is on its
// way and hastens it; one that nobody wants any more is cancelled where it has not been issued.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "config/options.h"
#include "daemon/catalog.h"
#include "daemon/metrics.h"
#include "daemon/mover.h"
#include "daemon/prefetch/device_returns.h"
#include "daemon/prefetch/lookahead.h"
#include "daemon/prefetch/prefetcher.h"
#include "daemon/prefetch/request_book.h"
#include "daemon/prefetch/return_rate.h"
#include "daemon/tenant.h"
#include "transport/service.h"

namespace terrace {

class PrefetchDriver final : public HostListener {
 public:
  // The layout that a client has registered for the entry, if one has.
  using LayoutFinder = std::function<std::optional<uint32_t>(const Entry&)>;

  // Listens to the mover. All references outlive the driver.
  PrefetchDriver(const Options& options, Catalog& catalog, std::vector<Tenant>& tenants,
                 Mover& mover, Metrics& metrics, LayoutFinder layout_of);

  // One result a hint, as Service::Hint. Layouts have been checked.
  std::vector<HintResult> Hint(SessionId session, uint16_t tenant,
                               absl::Span<const HintItem> hints);
  // All that it announced is withdrawn.
  void SessionClosed(SessionId session);
  // The session wants these now, in this order: before anything is looked up for it. What it had
  // announced as the request of the last of them has started.
  void Demanded(SessionId session, absl::Span<const ObjectKey> keys);
  // The eviction policy was told of a use: tells it of the next one.
  void Touched(ObjectId id);
  // Every few tens of milliseconds.
  void Tick();
  // Names and values for status, in a stable order.
  std::vector<std::pair<std::string, uint64_t>> Counters() const;

  // HostListener.
  void Entered(ObjectId id) override { Touched(id); }
  void Left(ObjectId id) override;
  void LoadEnded(const ObjectKey& key, const absl::Status& status) override;

 private:
  HintResult Announce(SessionId session, uint16_t tenant, const HintItem& hint);
  HintResult Withdraw(SessionId session, uint64_t request_id);
  void Forget(RequestBook::Number number);
  void Steer(absl::Span<const uint64_t> key_heads);
  void Steer(ObjectId id);
  void NoteStart(SessionId session, absl::Span<const ObjectKey> keys);
  void MeasureUse(uint64_t now_us);
  void PlaceWindow(uint64_t now_us);
  void Pump();
  void CancelUnwanted();
  void Start(const PrefetchPiece& piece);
  PrefetchTarget Target(uint64_t key_head) const;
  PrefetchLink Link() const;
  uint64_t TransferUs(uint64_t bytes) const;
  bool MayLeave(ObjectId victim, uint64_t due) const;

  const bool enabled_;
  const uint64_t max_keys_;  // of a session
  Catalog& catalog_;
  std::vector<Tenant>& tenants_;
  Mover& mover_;
  Metrics& metrics_;
  const LayoutFinder layout_of_;

  Lookahead lookahead_;
  Prefetcher prefetcher_;
  ReturnRate return_rate_;
  DeviceReturns returns_;
  RequestBook book_;

  absl::flat_hash_map<uint64_t, ObjectId> in_flight_;  // prefetches, by key head
  uint64_t placing_ = 0;                               // the key head that room is made for
  uint64_t last_batch_ = 0;
  uint64_t window_end_ = kNeverUsed;
  uint64_t window_at_us_ = 0;
  bool window_moved_ = false;
  double utilisation_ = 0;  // of the link, by demand, lately
  uint64_t measured_at_us_ = 0, measured_bytes_ = 0;
};

}  // namespace terrace
