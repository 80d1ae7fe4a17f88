// The calls that tell what is stored: prefixes, single keys, tails. Each counts as demand.
#include <algorithm>

#include "daemon/cache_service.h"
#include "daemon/load_or_compute.h"

namespace terrace {

ObjectId CacheService::FindReadable(const Session& session, uint32_t layout_id,
                                    const ObjectKey& key) const {
  const ObjectId id = FindVisible(session, key);
  if (id == kNoObject) return kNoObject;
  const Entry& entry = catalog_.at(id);
  const bool fits = entry.fingerprint == layout_fingerprints_[layout_id];
  return fits && mover_.Reachable(entry) ? id : kNoObject;
}

absl::StatusOr<Session*> CacheService::BeginLookup(SessionId id, uint32_t layout_id, size_t keys,
                                                   const char* call) {
  absl::StatusOr<Session*> session = Get(id, call);
  if (!session.ok()) return session;
  if (const auto layout = GetLayout(layout_id); !layout.ok()) return layout.status();
  if (absl::Status count = CheckKeyCount(keys); !count.ok()) return count;
  ++metrics_.lookup_calls;
  metrics_.lookup_keys += keys;
  return session;
}

absl::Status CacheService::Lookup(SessionId id, uint32_t layout_id,
                                  absl::Span<const ObjectKey> keys,
                                  std::vector<ExtentInfo>& extents) {
  absl::StatusOr<Session*> session = BeginLookup(id, layout_id, keys.size(), "lookup");
  if (!session.ok()) return session.status();
  uint64_t cold_bytes = 0;  // of records
  const size_t before = extents.size();
  std::vector<PrefixStep> steps;
  Demand& demand = demand_[(*session)->tenant];
  for (const ObjectKey& key : keys) {
    const ObjectId object = FindReadable(**session, layout_id, key);
    if (object == kNoObject) break;
    const Entry& entry = catalog_.at(object);
    extents.push_back(Describe(**session, object, cold_bytes));
    if (extents.back().tier == TierId::kNvme) cold_bytes += mover_.StoredBytes(entry);
    ++metrics_.lookup_hits;
    const uint64_t ready_us = steps.empty() ? 0 : steps.back().ready_us;
    steps.push_back({std::max<uint64_t>(ready_us, extents.back().eta_us), mover_.RemakeUs(entry)});
    demand.LookedUp(layout_id, key, entry.payload_bytes(), steps.back().compute_us);
  }
  for (const ObjectKey& absent : keys.subspan(steps.size())) {
    demand.LookedUp(layout_id, absent, 0, 0);
  }
  for (size_t i = StepsWorthLoading(steps); i < steps.size(); ++i) {
    extents[before + i].flags |= kFlagRecompute;
    ++metrics_.recompute_advised;
  }
  return absl::OkStatus();
}

absl::Status CacheService::Find(SessionId id, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                std::vector<ExtentInfo>& extents) {
  absl::StatusOr<Session*> session = BeginLookup(id, layout_id, keys.size(), "find");
  if (!session.ok()) return session.status();
  uint64_t cold_bytes = 0;  // of records
  Demand& demand = demand_[(*session)->tenant];
  for (const ObjectKey& key : keys) {
    ExtentInfo& extent = extents.emplace_back();
    const ObjectId object = FindReadable(**session, layout_id, key);
    if (object == kNoObject) {
      demand.LookedUp(layout_id, key, 0, 0);
      continue;
    }
    const Entry& entry = catalog_.at(object);
    extent = Describe(**session, object, cold_bytes);
    if (extent.tier == TierId::kNvme) cold_bytes += mover_.StoredBytes(entry);
    ++metrics_.lookup_hits;
    demand.LookedUp(layout_id, key, entry.payload_bytes(), mover_.RemakeUs(entry));
  }
  return absl::OkStatus();
}

absl::StatusOr<TailMatch> CacheService::MatchTail(SessionId id, uint32_t layout_id,
                                                  const ObjectKey& parent,
                                                  absl::Span<const ObjectKey> grains) {
  absl::StatusOr<Session*> session = Get(id, "match_tail");
  if (!session.ok()) return session.status();
  absl::StatusOr<const ObjectLayout*> layout = GetLayout(layout_id);
  if (!layout.ok()) return layout.status();
  absl::Status count = CheckKeyCount(grains.size());
  if (!count.ok()) return count;
  TailMatch match;
  auto best =
      catalog_.BestTail(parent, layout_fingerprints_[layout_id], (*session)->tenant, grains);
  if (!best) return match;
  const Entry& entry = catalog_.at(best->id);
  if (!mover_.Reachable(entry)) return match;
  ++metrics_.tail_matches;
  demand_[(*session)->tenant].LookedUp(layout_id, entry.key, entry.payload_bytes(),
                                       mover_.RemakeUs(entry));
  match.found = true;
  match.key = entry.key;
  match.matched_grains = best->matched_grains;
  match.grain_count = entry.grain_count;
  match.info = Describe(**session, best->id, 0);
  const PrefixStep step{match.info.eta_us, uint64_t{mover_.RemakeUs(entry)} * best->matched_grains /
                                               entry.grain_count};
  if (StepsWorthLoading({&step, 1}) == 0) {
    match.info.flags |= kFlagRecompute;
    ++metrics_.recompute_advised;
  }
  return match;
}

}  // namespace terrace
