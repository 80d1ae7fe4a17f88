// How often hints came true: what turns an engine's confidence into a probability. Decayed counts
// per source and per bucket of stated confidence, so that a source that starts to guess is
// disbelieved, and one that has mended is believed again. One thread; O(1); about 300 bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace terrace {

// Who says what will be wanted.
enum class HintSource : uint8_t {
  kQueue,      // requests that wait in an engine, in their order
  kDocuments,  // passages that a retriever found, before the prompt is known
  kSession,    // a conversation that sleeps, and when it is thought to return
  kExperts,    // experts that a router is about to choose
};
inline constexpr size_t kHintSources = 4;
// "queue", "documents", "session", "experts".
const char* HintSourceName(HintSource source);

class HintCalibration {
 public:
  // A hint of this source and confidence (0 .. 1) was resolved: the object was wanted, or not.
  void Record(HintSource source, float confidence, bool came_true);
  // The probability that such a hint comes true. As stated while nothing is known.
  float Probability(HintSource source, float confidence) const;
  uint64_t judged(HintSource source) const { return judged_[static_cast<size_t>(source)]; }

 private:
  static constexpr size_t kBuckets = 8;
  // So many hints' worth of belief in what a source says of itself, and so many are remembered.
  static constexpr float kPriorHints = 2, kRememberedHints = 256;

  struct Bucket {
    float resolved = 0, came_true = 0;
  };
  static size_t BucketOf(float confidence);

  std::array<std::array<Bucket, kBuckets>, kHintSources> buckets_{};
  std::array<uint64_t, kHintSources> judged_{};
};

}  // namespace terrace
