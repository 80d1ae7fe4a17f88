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

// What a call has found so far, in the order of its keys.
struct CacheService::Run {
  uint64_t cold_bytes = 0;    // of records
  ObjectId cold = kNoObject;  // one that is a record only
  std::vector<PrefixStep> steps;
};

ExtentInfo CacheService::Extend(const Session& session, uint32_t layout_id, ObjectId object,
                                Run& run) {
  const Entry& entry = catalog_.at(object);
  const ExtentInfo extent = Describe(session, object, run.cold_bytes);
  if (extent.tier == TierId::kNvme) {
    run.cold_bytes += mover_.StoredBytes(entry);
    run.cold = object;
  }
  ++metrics_.lookup_hits;
  const uint64_t before_us = run.steps.empty() ? 0 : run.steps.back().ready_us;
  const uint32_t remake_us = mover_.RemakeUs(entry);
  run.steps.push_back({std::max<uint64_t>(before_us, extent.eta_us), remake_us});
  demand_[session.tenant].LookedUp(layout_id, entry.key, entry.payload_bytes(), remake_us);
  return extent;
}

// `prefix`: of a run, from its first extent on.
void CacheService::Advise(const Run& run, absl::Span<ExtentInfo> prefix) {
  const std::span<const PrefixStep> steps(run.steps.data(), prefix.size());
  const size_t worth = StepsWorthLoading(steps);
  if (worth == prefix.size()) return;
  for (ExtentInfo& extent : prefix.subspan(worth)) extent.flags |= kFlagRecompute;
  metrics_.recompute_advised += prefix.size() - worth;
  if (run.cold != kNoObject) mover_.KeepLinkMeasured(run.cold);
}

absl::Status CacheService::Lookup(SessionId id, uint32_t layout_id,
                                  absl::Span<const ObjectKey> keys,
                                  std::vector<ExtentInfo>& extents) {
  absl::StatusOr<Session*> session = BeginLookup(id, layout_id, keys.size(), "lookup");
  if (!session.ok()) return session.status();
  const size_t before = extents.size();
  Run run;
  for (const ObjectKey& key : keys) {
    const ObjectId object = FindReadable(**session, layout_id, key);
    if (object == kNoObject) break;
    extents.push_back(Extend(**session, layout_id, object, run));
  }
  for (const ObjectKey& absent : keys.subspan(run.steps.size())) {
    demand_[(*session)->tenant].LookedUp(layout_id, absent, 0, 0);
  }
  Advise(run, absl::MakeSpan(extents).subspan(before));
  return absl::OkStatus();
}

absl::Status CacheService::Find(SessionId id, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                std::vector<ExtentInfo>& extents) {
  absl::StatusOr<Session*> session = BeginLookup(id, layout_id, keys.size(), "find");
  if (!session.ok()) return session.status();
  const size_t before = extents.size();
  size_t leading = keys.size();  // those before the first that is not there
  Run run;
  for (const ObjectKey& key : keys) {
    const ObjectId object = FindReadable(**session, layout_id, key);
    if (object == kNoObject) {
      leading = std::min(leading, extents.size() - before);
      extents.emplace_back();
      demand_[(*session)->tenant].LookedUp(layout_id, key, 0, 0);
      continue;
    }
    extents.push_back(Extend(**session, layout_id, object, run));
  }
  Advise(run, absl::MakeSpan(extents).subspan(before, leading));
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
    mover_.KeepLinkMeasured(best->id);
  }
  return match;
}

}  // namespace terrace
