#include "daemon/prefetch/driver.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "daemon/session.h"

namespace terrace {

namespace {

// One is on its way, and the next is there when it ends.
constexpr size_t kObjectsAhead = 2;
constexpr uint64_t kReadLatencyUs = 100;
constexpr uint64_t kWindowUs = 100'000;  // between two looks at what fits
constexpr uint32_t kWindowUses = 4096;   // that one looks at
constexpr uint64_t kMeasureUs = 100'000;
// Behind its time, a hint that was neither withdrawn nor came true: its engine has lost it.
constexpr uint64_t kLapseUs = 600'000'000;
constexpr float kAnyProbability = 0;

HintSource SourceOf(HintKind kind) {
  switch (kind) {
    case HintKind::kDocuments:
      return HintSource::kDocuments;
    case HintKind::kSession:
      return HintSource::kSession;
    case HintKind::kExperts:
      return HintSource::kExperts;
    default:
      return HintSource::kQueue;
  }
}

LookaheadOptions LookaheadFor(const Options& options) {
  LookaheadOptions lookahead;
  lookahead.max_uses = std::max<size_t>(lookahead.max_uses, options.limits.max_hints_per_session);
  return lookahead;
}

PrefetchOptions WholeObjects() {
  PrefetchOptions prefetch;
  prefetch.piece_bytes = std::numeric_limits<uint64_t>::max();  // the NVMe tier cuts them
  return prefetch;
}

}  // namespace

PrefetchDriver::PrefetchDriver(const Options& options, Catalog& catalog,
                               std::vector<Tenant>& tenants, Mover& mover, Metrics& metrics,
                               LayoutFinder layout_of)
    : enabled_(options.prefetch.enabled && options.nvme.enabled),
      max_keys_(options.limits.max_hints_per_session),
      catalog_(catalog),
      tenants_(tenants),
      mover_(mover),
      metrics_(metrics),
      layout_of_(std::move(layout_of)),
      lookahead_(LookaheadFor(options), MonotonicUs),
      prefetcher_(WholeObjects(), &lookahead_, MonotonicUs),
      returns_(options, catalog, tenants, mover, lookahead_) {
  mover_.Listen(this);
}

// --- hints --------------------------------------------------------------------------------------

std::vector<HintResult> PrefetchDriver::Hint(SessionId session, uint16_t tenant,
                                             absl::Span<const HintItem> hints) {
  ++metrics_.hint_calls;
  std::vector<HintResult> results;
  results.reserve(hints.size());
  for (const HintItem& hint : hints) {
    results.push_back(hint.kind == HintKind::kWithdraw ? Withdraw(session, hint.request_id)
                                                       : Announce(session, tenant, hint));
    metrics_.hint_keys += results.back().accepted;
    metrics_.hint_refused += !results.back().status.ok();
  }
  window_moved_ = true;
  Pump();
  return results;
}

HintResult PrefetchDriver::Announce(SessionId session, uint16_t tenant, const HintItem& hint) {
  const uint64_t now_us = MonotonicUs();
  const HintSource source = SourceOf(hint.kind);
  const bool known = book_.Find(session, hint.request_id) != 0;
  const RequestBook::Number number = book_.FindOrAdd(session, hint.request_id);
  const uint64_t beside = book_.KeysBeside(session, number, source);
  const uint64_t room = max_keys_ - std::min(max_keys_, beside);
  const auto taken = hint.keys.first(std::min<uint64_t>(hint.keys.size(), room));

  std::vector<AnnouncedKey> keys;
  std::vector<uint64_t> heads;
  for (const ObjectKey& key : taken) {
    // Another tenant's object is none of its business; it is not told so.
    const ObjectId id = catalog_.Find(key);
    if (id != kNoObject && catalog_.at(id).tenant != tenant) continue;
    keys.push_back({key.Head64(), hint.confidence});
    heads.push_back(key.Head64());
  }
  Announcement announcement;
  announcement.source = source;
  announcement.request = number;
  announcement.queue = hint.kind == HintKind::kQueue ? session : 0;
  announcement.order = hint.order;
  if (hint.eta_us != 0) announcement.eta = now_us + hint.eta_us;
  announcement.keys = keys;
  HintResult result;
  result.status = lookahead_.Announce(announcement);
  if (!result.status.ok()) {
    if (!known) Forget(number);
    return result;
  }
  const uint64_t lapses_us =
      now_us + (hint.deadline_us != 0 ? hint.deadline_us : hint.eta_us + kLapseUs);
  const std::vector<uint64_t> before = book_.Announce(number, source, heads, lapses_us);
  Steer(before);
  Steer(heads);
  result.accepted = static_cast<uint32_t>(taken.size());
  if (taken.size() < hint.keys.size()) {
    result.status = absl::ResourceExhaustedError(
        absl::StrCat("keys: ", hint.keys.size(), " beside ", beside,
                     " announced before exceed limits.max_hints_per_session = ", max_keys_));
  }
  return result;
}

HintResult PrefetchDriver::Withdraw(SessionId session, uint64_t request_id) {
  const RequestBook::Number number = book_.Find(session, request_id);
  if (number != 0) {
    ++metrics_.hint_withdrawn;
    Forget(number);
  }
  return {};
}

void PrefetchDriver::Forget(RequestBook::Number number) {
  lookahead_.Withdraw(number);
  Steer(book_.Take(number));
}

void PrefetchDriver::SessionClosed(SessionId session) {
  for (const RequestBook::Number number : book_.RequestsOf(session)) {
    ++metrics_.hint_withdrawn;
    Forget(number);
  }
  lookahead_.EndQueue(session);
  CancelUnwanted();
}

// --- eviction -----------------------------------------------------------------------------------

void PrefetchDriver::Steer(absl::Span<const uint64_t> key_heads) {
  for (const uint64_t key_head : key_heads) {
    const ObjectId id = catalog_.FindByHead(key_head);
    if (id != kNoObject) Steer(id);
  }
}

void PrefetchDriver::Steer(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  if (!entry.placed) return;
  const std::optional<FutureUse> next = lookahead_.NextUse(entry.key.Head64());
  mover_.HintUse(id, next ? next->due : kUnknownUse, next ? next->probability : 0);
  returns_.Expect(id, next ? next->due : kUnknownUse);
}

void PrefetchDriver::Touched(ObjectId id) {
  if (lookahead_.uses() > 0) Steer(id);
}

bool PrefetchDriver::MayLeave(ObjectId victim, uint64_t due) const {
  const std::optional<FutureUse> next = lookahead_.NextUse(catalog_.at(victim).key.Head64());
  return !next || next->due > due;
}

void PrefetchDriver::Left(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  const uint64_t key_head = entry.key.Head64();
  returns_.Left(id);
  return_rate_.Evicted(key_head, std::max<size_t>(1, tenants_[entry.tenant].host_objects));
  if (placing_ != 0) {
    prefetcher_.Displaced(placing_, key_head, TransferUs(mover_.StoredBytes(entry)));
  }
  prefetcher_.Left(key_head);
}

// --- demand -------------------------------------------------------------------------------------

// Requests that wait may share a beginning; the last object tells them apart.
void PrefetchDriver::NoteStart(SessionId session, absl::Span<const ObjectKey> keys) {
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const std::optional<FutureUse> use = lookahead_.NextUse(key->Head64(), kAnyProbability);
    if (!use || !book_.Belongs(use->request, session)) continue;
    lookahead_.Started(use->request);
    Steer(book_.Take(use->request));
    return;
  }
}

void PrefetchDriver::Demanded(SessionId session, absl::Span<const ObjectKey> keys) {
  if (book_.HasRequests(session)) NoteStart(session, keys);
  for (const ObjectKey& key : keys) {
    const uint64_t key_head = key.Head64();
    const auto prefetch = in_flight_.find(key_head);
    prefetcher_.Demand(key_head, prefetch == in_flight_.end()
                                     ? std::nullopt
                                     : std::optional(mover_.LoadedShare(prefetch->second)));
    return_rate_.Demanded(key_head);
    lookahead_.Used(key_head);
  }
}

// --- prefetch -----------------------------------------------------------------------------------

void PrefetchDriver::Tick() {
  const uint64_t now_us = MonotonicUs();
  while (const RequestBook::Number number = book_.Lapsed(now_us)) {
    ++metrics_.hint_lapsed;
    Forget(number);
  }
  MeasureUse(now_us);
  PlaceWindow(now_us);
  Pump();
  returns_.MoveUp();
}

void PrefetchDriver::MeasureUse(uint64_t now_us) {
  if (now_us - measured_at_us_ < kMeasureUs) return;
  const uint64_t bytes = mover_.demand_read_bytes();
  const double busy_us = static_cast<double>(TransferUs(bytes - measured_bytes_));
  const double share = std::min(1.0, busy_us / static_cast<double>(now_us - measured_at_us_));
  utilisation_ += (share - utilisation_) / 4;
  measured_at_us_ = now_us;
  measured_bytes_ = bytes;
}

// Up to when the objects that are wanted first fill host memory. More uses than a look takes in
// count as if they did.
void PrefetchDriver::PlaceWindow(uint64_t now_us) {
  if (!window_moved_ || now_us - window_at_us_ < kWindowUs) return;
  window_moved_ = false;
  window_at_us_ = now_us;
  uint64_t capacity_bytes = 0;
  for (const Tenant& tenant : tenants_) {
    capacity_bytes += tenant.host->capacity_bytes();
    if (tenant.device != nullptr) capacity_bytes += tenant.device->capacity_bytes();
  }
  uint32_t uses = 0;
  const auto windows = lookahead_.ComputeWindows(capacity_bytes, 0, [&](uint64_t key_head) {
    if (++uses > kWindowUses) return capacity_bytes + 1;
    const ObjectId id = catalog_.FindByHead(key_head);
    return id != kNoObject ? catalog_.at(id).payload_bytes() : 0;
  });
  window_end_ = windows.prefetch_end;
}

void PrefetchDriver::Pump() {
  if (!enabled_) return;
  CancelUnwanted();
  while (in_flight_.size() < kObjectsAhead && mover_.demand_loads() == 0) {
    const std::optional<PrefetchPiece> next = prefetcher_.Next(
        Link(), window_end_, [this](uint64_t key_head) { return Target(key_head); });
    if (!next) return;
    Start(*next);
  }
}

void PrefetchDriver::CancelUnwanted() {
  for (const auto& [key_head, id] : in_flight_) {
    if (lookahead_.StandingOf(key_head) != Lookahead::Standing::kGone) continue;
    if (catalog_.at(id).lease_count > 0 || catalog_.at(id).in_device)
      continue;  // its demand came: it is no prefetch any more
    prefetcher_.Cancelled(key_head, mover_.LoadedShare(id));
    mover_.CancelPromotion(id);
  }
}

void PrefetchDriver::Start(const PrefetchPiece& piece) {
  const ObjectId id = catalog_.FindByHead(piece.key_head);
  uint32_t retry_after_ms = 0;
  placing_ = piece.key_head;
  const absl::Status status =
      mover_.Promote(id, *layout_of_(catalog_.at(id)), IoPriority::kQueued, ++last_batch_,
                     retry_after_ms, [&](ObjectId victim) { return MayLeave(victim, piece.due); });
  placing_ = 0;
  if (status.ok()) {
    in_flight_.emplace(piece.key_head, id);
  } else {
    prefetcher_.Refused(piece.key_head);
  }
}

void PrefetchDriver::LoadEnded(const ObjectKey& key, const absl::Status& status) {
  const uint64_t key_head = key.Head64();
  if (in_flight_.erase(key_head) == 0) return;
  if (status.ok()) {
    prefetcher_.Arrived(key_head, std::numeric_limits<uint32_t>::max());
  } else {
    prefetcher_.Refused(key_head);
  }
  Pump();
}

PrefetchTarget PrefetchDriver::Target(uint64_t key_head) const {
  PrefetchTarget target;
  const ObjectId id = catalog_.FindByHead(key_head);
  if (id == kNoObject) return target;
  const Entry& entry = catalog_.at(id);
  if (!entry.visible() || entry.host != nullptr || entry.in_device) return target;
  if (entry.record == kNoRecord) return target;
  if (!mover_.Reachable(entry) || !layout_of_(entry)) return target;
  target.bytes = mover_.StoredBytes(entry);
  const uint64_t fetch_us = kReadLatencyUs + TransferUs(target.bytes);
  const uint64_t remake_us = mover_.RemakeUs(entry);
  target.stall_us = remake_us != 0 ? std::min(remake_us, fetch_us) : fetch_us;
  const MemoryTier& host = *tenants_[entry.tenant].host;
  if (host.used_bytes() + entry.payload_bytes() > host.capacity_bytes()) {
    target.victim_loss_us =
        static_cast<uint64_t>(return_rate_.rate() * static_cast<double>(fetch_us));
  }
  return target;
}

uint64_t PrefetchDriver::TransferUs(uint64_t bytes) const {
  return static_cast<uint64_t>(static_cast<double>(bytes) * 1e6 / mover_.ReadBytesPerS());
}

PrefetchLink PrefetchDriver::Link() const {
  return {mover_.ReadBytesPerS(), kReadLatencyUs, utilisation_, mover_.loading_bytes()};
}

// --- counters -----------------------------------------------------------------------------------

std::vector<std::pair<std::string, uint64_t>> PrefetchDriver::Counters() const {
  std::vector<std::pair<std::string, uint64_t>> counters = {
      {"hint_requests", lookahead_.requests()}, {"hint_expected_objects", lookahead_.uses()}};
  for (size_t i = 0; i < kHintSources; ++i) {
    const auto source = static_cast<HintSource>(i);
    const PrefetchCounters& count = prefetcher_.counters(source);
    const std::string prefix = absl::StrCat("prefetch_", HintSourceName(source), "_");
    for (const auto& [name, value] : {std::pair<const char*, uint64_t>{"issued", count.issued},
                                      {"issued_bytes", count.issued_bytes},
                                      {"timely", count.timely},
                                      {"late", count.late},
                                      {"unused", count.unused},
                                      {"unused_bytes", count.unused_bytes},
                                      {"cancelled", count.cancelled},
                                      {"refused", count.refused},
                                      {"pollution", count.pollution},
                                      {"shadow", count.shadow},
                                      {"off", prefetcher_.on(source) ? 0 : 1}}) {
      counters.emplace_back(prefix + name, value);
    }
  }
  return counters;
}

}  // namespace terrace
