// Which objects are worth writing to the device, which wears out: those that were wanted twice,
// those whose owner says so, and those whose expected saving exceeds what writing them costs.
// Of a real chat trace 76% of the blocks are used once (Mooncake, FAST 2025): writing those only
// costs endurance.
//
// Pure; loop thread.
#pragma once

#include <cstdint>
#include <deque>

#include "absl/container/flat_hash_set.h"
#include "config/object_key.h"

namespace terrace::nvme {

enum class AdmissionPolicy : uint8_t {
  kAuto,         // second touch, hint, or expected saving
  kAlways,       // everything
  kSecondTouch,  // second touch or hint
};

class Admission {
 public:
  explicit Admission(AdmissionPolicy policy) : policy_(policy) {}

  struct Candidate {
    ObjectKey key;
    uint64_t bytes = 0;
    uint32_t cost_us = 0;  // to remake it; 0: unknown, taken to be high
    bool hinted = false;   // pinned, or wanted again while it was in memory
  };
  // Measured; 0: not yet.
  struct Speeds {
    double read_bytes_per_s = 0;
    double write_bytes_per_s = 0;
  };
  // Whether to write it. One that is not is remembered for a while: its next time is a second
  // touch.
  bool Admit(const Candidate& candidate, const Speeds& speeds);
  // A record was wanted for the first time since it was written.
  void Reused() { ++reused_; }

  // Share of the records written that were wanted again.
  double reuse() const;
  uint64_t rejected() const { return rejected_; }

 private:
  bool PaysOff(const Candidate& candidate, const Speeds& speeds) const;
  bool TakeGhost(uint64_t head);
  void AddGhost(uint64_t head);

  const AdmissionPolicy policy_;
  // Objects that were not written, by the head of their key, oldest first.
  absl::flat_hash_set<uint64_t> ghosts_;
  std::deque<uint64_t> ghost_order_;  // those taken since stay until they are the oldest
  uint64_t admitted_ = 0, reused_ = 0, rejected_ = 0;
};

}  // namespace terrace::nvme
