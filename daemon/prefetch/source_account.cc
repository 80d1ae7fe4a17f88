#include "daemon/prefetch/source_account.h"

namespace terrace {

void SourceAccount::Record(double gain_us, double cost_us) {
  constexpr double kKept = 1 - 1 / kRemembered;
  gain_us_ = gain_us_ * kKept + gain_us;
  cost_us_ = cost_us_ * kKept + cost_us;
  weight_ = weight_ * kKept + 1;
  ++verdicts_;
  if (weight_ < kNeeded) return;
  const bool pays = on_ ? gain_us_ > cost_us_ : gain_us_ > kMargin * cost_us_;
  if (pays == on_) return;
  on_ = pays;
  ++switches_;
  gain_us_ = cost_us_ = weight_ = 0;  // judged anew by what happens from now on
}

}  // namespace terrace
