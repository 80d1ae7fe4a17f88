// How long after a use the next one comes, learned online for classes of objects, and what holding
// an object is worth that has waited so long already.
//
// A *life* begins at a use and ends at the next one. Lives are counted by class, by when they began
// and by the *level* of the age at which they ended, whether the object was in the tier by then or
// only remembered. So what is learned does not depend on what a policy keeps, and lives too young
// to tell are left out where they cannot tell (the product-limit estimator: Kaplan and Meier,
// 1958).
//
// The density of an object of age a is the best ratio, over all t, of the probability that it is
// used before age t to the time it is held until then: the index of Gittins (1979), for which hit
// density (LHD: Beckmann, Chen, Cidon, NSDI 2018) is an estimate under the policy's own evictions.
// It rises with age where uses come late: then the new leave before the old.
//
// Time is a count of accesses. Calls are O(1), except Densities.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

class ReuseTimes {
 public:
  // Ages fall into levels, two an octave: 0-1, 2, 3, 4-5, 6-7, 8-11, ... up to 2^28 and more. One
  // an octave cost up to 0.4 points of hit rate where a queue of hours is known, four gained
  // nothing.
  static constexpr int kLevels = 56;
  static int LevelOf(uint64_t age);
  static uint64_t LevelStart(int level) {
    return level == 0 ? 0 : (uint64_t{2} + (level - 1) % 2) << (level - 1) / 2;
  }

  explicit ReuseTimes(int classes);

  // What is learned from reaches back at least 8 times so many accesses; older lives fade.
  // The owner calls it as its number of objects grows.
  void SetScale(uint64_t accesses);
  // `now` never falls.
  void Begin(int life_class, uint64_t now);
  void End(int life_class, uint64_t began, uint64_t now);
  // A life turned out to be of another class before it ended.
  void Move(int from, int to, uint64_t began);

  // Hits to expect an access of holding, of each class at each level: [classes, kLevels] row-major.
  // Tens of microseconds for the classes of one kind of object.
  void Densities(uint64_t now, absl::Span<float> densities) const;

 private:
  // Lives are kept apart by the epoch in which they began. 64 epochs of an eighth of the scale.
  static constexpr uint64_t kEpochs = 64;
  struct Cohort {
    uint32_t began = 0;
    uint32_t ended[kLevels] = {};
  };
  struct Level {
    double at_risk = 0, ended = 0;  // lives that reached the level, and that ended there
  };
  struct LifeClass {
    Cohort cohorts[kEpochs];
    Level faded[kLevels];  // of lives that began before those
  };

  LifeClass& ClassAt(int life_class);
  bool Remembered(uint64_t epoch) const { return epoch >= oldest_ && epoch <= newest_; }
  void Advance(uint64_t now);
  void Fade();
  void Widen();
  void Count(const LifeClass& lives, uint64_t now, Level* levels) const;
  // Of one class, from its own lives ([kLevels]) and the share of its kin's that end in each level.
  static void ClassDensities(const Level* levels, const double* kin_share, float* densities);

  std::vector<std::unique_ptr<LifeClass>> classes_;  // null: never seen
  int epoch_bits_ = 0;                               // log2 of an epoch, in accesses
  uint64_t oldest_ = 0, newest_ = 0;                 // epochs
};

}  // namespace terrace
