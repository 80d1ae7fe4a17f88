#include "daemon/prefetch/hint_calibration.h"

#include <algorithm>

namespace terrace {

const char* HintSourceName(HintSource source) {
  switch (source) {
    case HintSource::kQueue:
      return "queue";
    case HintSource::kDocuments:
      return "documents";
    case HintSource::kSession:
      return "session";
    case HintSource::kExperts:
      return "experts";
  }
  return "unknown";
}

size_t HintCalibration::BucketOf(float confidence) {
  return std::min(kBuckets - 1, static_cast<size_t>(std::max(0.0f, confidence) * kBuckets));
}

void HintCalibration::Record(HintSource source, float confidence, bool came_true) {
  Bucket& bucket = buckets_[static_cast<size_t>(source)][BucketOf(confidence)];
  if (bucket.resolved >= kRememberedHints) {
    bucket.resolved /= 2;
    bucket.came_true /= 2;
  }
  ++judged_[static_cast<size_t>(source)];
  bucket.resolved += 1;
  bucket.came_true += came_true ? 1 : 0;
}

float HintCalibration::Probability(HintSource source, float confidence) const {
  const Bucket& bucket = buckets_[static_cast<size_t>(source)][BucketOf(confidence)];
  return (bucket.came_true + kPriorHints * confidence) / (bucket.resolved + kPriorHints);
}

}  // namespace terrace
