#include "tiers/nvme/health.h"

#include "absl/strings/str_cat.h"

namespace terrace::nvme {

namespace {

using std::chrono::milliseconds;

// So many errors within a window, and not fewer than successes, are a storm.
constexpr int kStormErrors = 8;
constexpr milliseconds kWindow{1000};
constexpr milliseconds kProbePeriod{250};
// After a full disk, how long writes are refused before one may try again.
constexpr milliseconds kReadOnlyPeriod{2000};

}  // namespace

void Health::Note(const absl::Status& status, Time now) {
  if (status.ok()) {
    ++successes_;
    return;
  }
  if (absl::IsResourceExhausted(status)) {
    read_only_until_ = now + kReadOnlyPeriod;
    reason_ = std::string(status.message());
    return;
  }
  if (!absl::IsUnavailable(status) || out_of_service_) return;
  if (now - window_begin_ > kWindow) {
    window_begin_ = now;
    errors_ = successes_ = 0;
  }
  if (++errors_ < kStormErrors || errors_ < successes_) return;
  out_of_service_ = true;
  next_probe_ = now + kProbePeriod;
  reason_ = std::string(status.message());
}

void Health::ProbeBegun(Time now) { next_probe_ = now + std::chrono::hours(1); }

void Health::ProbeEnded(const absl::Status& status, Time now) {
  if (status.ok()) {
    out_of_service_ = false;
    window_begin_ = now;
    errors_ = successes_ = 0;
    return;
  }
  reason_ = std::string(status.message());
  next_probe_ = now + kProbePeriod;
}

std::string Health::Describe(Time now) const {
  if (out_of_service_) return absl::StrCat("out of service: ", reason_);
  if (now < read_only_until_) return absl::StrCat("read-only: ", reason_);
  return "ok";
}

}  // namespace terrace::nvme
