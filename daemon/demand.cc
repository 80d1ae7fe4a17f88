#include "daemon/demand.h"

#include <algorithm>
#include <cmath>

namespace terrace {

namespace {

constexpr double kHalfLifeUs = 6 * 3600e6;
constexpr uint64_t kFadeEveryUs = 60'000'000;

}  // namespace

Demand::LayoutState& Demand::At(uint32_t layout) {
  if (layout >= layouts_.size()) layouts_.resize(layout + 1);
  return layouts_[layout];
}

void Demand::Count(LayoutState& state, const ObjectKey& key, uint64_t payload_bytes,
                   uint32_t remake_us) {
  if (payload_bytes != 0) state.latest_bytes = payload_bytes;
  const uint64_t bytes = std::max<uint64_t>(state.latest_bytes, 1);
  curve_.Access(key.Head64(), AlignUp(bytes, kExtentAlignment));
  if (remake_us == 0) return;
  cost_us_ += remake_us;
  costed_accesses_ += 1;
}

void Demand::LookedUp(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes,
                      uint32_t remake_us) {
  LayoutState& state = At(layout);
  state.looked_up = true;
  Count(state, key, payload_bytes, remake_us);
}

void Demand::Acquired(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes,
                      uint32_t remake_us) {
  LayoutState& state = At(layout);
  if (!state.looked_up) Count(state, key, payload_bytes, remake_us);
}

void Demand::Stored(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes) {
  At(layout).latest_bytes = payload_bytes;
  curve_.SetBytes(key.Head64(), AlignUp(payload_bytes, kExtentAlignment));
}

void Demand::Tick(uint64_t now_us) {
  const uint64_t passed_us = now_us - faded_us_;
  if (passed_us < kFadeEveryUs) return;
  const double factor = std::exp2(-static_cast<double>(passed_us) / kHalfLifeUs);
  curve_.Decay(factor);
  window_us_ = (window_us_ + static_cast<double>(passed_us)) * factor;
  cost_us_ *= factor;
  costed_accesses_ *= factor;
  faded_us_ = now_us;
}

double Demand::AccessesPerHour(uint64_t now_us) const {
  const double window_us = window_us_ + static_cast<double>(now_us - faded_us_);
  return window_us > 0 ? curve_.accesses() * 3600e6 / window_us : 0;
}

double Demand::mean_bytes() const {
  return curve_.accesses() > 0 ? curve_.bytes() / curve_.accesses() : 0;
}

}  // namespace terrace
