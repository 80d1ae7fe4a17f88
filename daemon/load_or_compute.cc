#include "daemon/load_or_compute.h"

namespace terrace {

size_t StepsWorthLoading(std::span<const PrefixStep> steps) {
  size_t best = steps.size();
  uint64_t best_us = steps.empty() ? 0 : steps.back().ready_us;
  uint64_t computing_us = 0;
  for (size_t count = steps.size(); count > 0 && steps[count - 1].compute_us != 0; --count) {
    computing_us += steps[count - 1].compute_us;
    const uint64_t loading_us = count > 1 ? steps[count - 2].ready_us : 0;
    if (loading_us + computing_us < best_us) {
      best_us = loading_us + computing_us;
      best = count - 1;
    }
  }
  return best;
}

}  // namespace terrace
