// CacheService: what another size of a tier would hit, and what a hit is worth.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "daemon/cache_service.h"

namespace terrace {

namespace {

constexpr uint64_t kStepBytes = uint64_t{1} << 30;
constexpr int kPointsAnOctave = 12;
constexpr int kOctavesBelow = 10;  // the smallest size, below the tier's
constexpr int kOctavesAbove = 2;
constexpr ObjectId kSharesLookedAt = 4096;  // entries

// Sizes of equal ratio around the tier's, itself, and 1 GiB more and less, ascending.
std::vector<uint64_t> SizesAround(uint64_t capacity_bytes) {
  std::vector<uint64_t> sizes = {0, capacity_bytes, capacity_bytes + kStepBytes};
  if (capacity_bytes > kStepBytes) sizes.push_back(capacity_bytes - kStepBytes);
  for (int i = -kOctavesBelow * kPointsAnOctave; i <= kOctavesAbove * kPointsAnOctave; ++i) {
    const double factor = std::exp2(static_cast<double>(i) / kPointsAnOctave);
    sizes.push_back(static_cast<uint64_t>(static_cast<double>(capacity_bytes) * factor));
  }
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

}  // namespace

double CacheService::StoredShare() const {
  uint64_t stored_bytes = 0, bytes = 0;
  const ObjectId step = catalog_.slot_count() / kSharesLookedAt + 1;
  for (ObjectId slot = 0; slot < catalog_.slot_count(); slot += step) {
    const Entry& entry = catalog_.at(slot);
    if (!entry.visible() || entry.record == kNoRecord) continue;
    stored_bytes += mover_.StoredBytes(entry);
    bytes += entry.payload_bytes();
  }
  return bytes == 0 ? 1 : static_cast<double>(stored_bytes) / static_cast<double>(bytes);
}

double CacheService::HitSavesUs(uint16_t tenant, bool nvme) const {
  const Demand& demand = demand_[tenant];
  const double remake_us = demand.remake_us();
  const bool in_service = nvme_ != nullptr && nvme_->in_service();
  const auto stored_bytes = static_cast<uint64_t>(demand.mean_bytes() * StoredShare());
  const double fetch_us = in_service ? mover_.FetchUs(stored_bytes) : 0;
  // Without host memory the object is read from NVMe, where it most likely is, unless making it
  // again is faster; without either it is made again.
  if (nvme) return std::max(0.0, remake_us - fetch_us);
  if (!in_service || demand.mean_bytes() == 0) return remake_us;
  return remake_us > 0 ? std::min(remake_us, fetch_us) : fetch_us;
}

absl::StatusOr<MissRatioCurveReply> CacheService::MissRatioCurve(SessionId id,
                                                                 const MissRatioQuery& query) {
  absl::StatusOr<Session*> session = Get(id, "miss_ratio_curve");
  if (!session.ok()) return session.status();
  absl::StatusOr<uint16_t> tenant = (*session)->tenant;
  if (!query.tenant.empty()) tenant = TenantOf((*session)->peer, query.tenant);
  if (!tenant.ok()) return tenant.status();
  const bool nvme = query.tier == "nvme";
  if (!nvme && query.tier != "host") {
    return absl::InvalidArgumentError(
        absl::StrCat("tier: '", query.tier, "' given, expected host or nvme"));
  }
  if (nvme && nvme_ == nullptr) return absl::NotFoundError("tier: there is no nvme tier");

  MissRatioCurveReply reply;
  reply.capacities.push_back({"host", tenants_[*tenant].host->capacity_bytes()});
  if (nvme_ != nullptr) reply.capacities.push_back({"nvme", nvme_->Stats().capacity_bytes});
  const Demand& demand = demand_[*tenant];
  // The curve is one of objects as engines see them. What is in host memory is on NVMe, too, as a
  // rule: a tier is judged by its own size.
  const double share = nvme ? StoredShare() : 1;
  for (const uint64_t bytes : SizesAround(reply.capacities[nvme ? 1 : 0].bytes)) {
    const auto holds = static_cast<uint64_t>(static_cast<double>(bytes) / share);
    reply.points.push_back({bytes, static_cast<float>(demand.curve().MissRatio(holds)),
                            static_cast<float>(demand.curve().ByteMissRatio(holds))});
  }
  reply.accesses = static_cast<uint64_t>(demand.curve().accesses());
  reply.sampled = static_cast<uint64_t>(demand.curve().sampled_accesses());
  reply.accesses_per_hour = demand.AccessesPerHour(MonotonicUs());
  reply.hit_saves_us = HitSavesUs(*tenant, nvme);
  return reply;
}

}  // namespace terrace
