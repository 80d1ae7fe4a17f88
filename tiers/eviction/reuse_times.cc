#include "tiers/eviction/reuse_times.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace terrace {

namespace {

// Lives of a class count for as much as its kin's where there are so many of them.
constexpr double kPriorLives = 16;
// Share of lives that end in a level while nothing is known: the same in all, so that density
// falls with age as recency would have it.
constexpr double kPriorShare = 0.05;
// What is older than the epochs is halved each time they have all passed.
constexpr double kFade = 0.9892;  // 2^(-1/64)

}  // namespace

int ReuseTimes::LevelOf(uint64_t age) {
  if (age < 2) return 0;
  const int octave = std::bit_width(age) - 2;
  return std::min<int>(2 * octave + ((age >> octave) & 1) + 1, kLevels - 1);
}

ReuseTimes::ReuseTimes(int classes) : classes_(classes) {}

void ReuseTimes::SetScale(uint64_t accesses) {
  while (uint64_t{1} << epoch_bits_ < accesses / 8) Widen();
}

void ReuseTimes::Begin(int life_class, uint64_t now) {
  Advance(now);
  ++ClassAt(life_class).cohorts[newest_ % kEpochs].began;
}

void ReuseTimes::End(int life_class, uint64_t began, uint64_t now) {
  const uint64_t epoch = began >> epoch_bits_;
  if (!Remembered(epoch)) return;
  ++ClassAt(life_class).cohorts[epoch % kEpochs].ended[LevelOf(now - began)];
}

void ReuseTimes::Move(int from, int to, uint64_t began) {
  const uint64_t epoch = began >> epoch_bits_;
  if (!Remembered(epoch)) return;
  --ClassAt(from).cohorts[epoch % kEpochs].began;
  ++ClassAt(to).cohorts[epoch % kEpochs].began;
}

void ReuseTimes::Densities(uint64_t now, absl::Span<float> densities) const {
  Level kin[kLevels];
  std::vector<Level> counts(classes_.size() * kLevels);
  for (size_t c = 0; c < classes_.size(); ++c) {
    if (classes_[c] == nullptr) continue;
    Level* levels = &counts[c * kLevels];
    Count(*classes_[c], now, levels);
    for (int i = 0; i < kLevels; ++i) {
      kin[i].at_risk += levels[i].at_risk;
      kin[i].ended += levels[i].ended;
    }
  }
  double kin_share[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    const double prior = i > 0 ? kin_share[i - 1] : kPriorShare;
    kin_share[i] = (kin[i].ended + kPriorLives * prior) / (kin[i].at_risk + kPriorLives);
  }
  // Classes of which nothing is known are alike.
  const float* unknown = nullptr;
  for (size_t c = 0; c < classes_.size(); ++c) {
    float* const of_class = &densities[c * kLevels];
    if (classes_[c] == nullptr && unknown != nullptr) {
      std::copy_n(unknown, kLevels, of_class);
      continue;
    }
    if (classes_[c] == nullptr) unknown = of_class;
    ClassDensities(&counts[c * kLevels], kin_share, of_class);
  }
}

void ReuseTimes::ClassDensities(const Level* levels, const double* kin_share, float* densities) {
  static const std::array<double, kLevels> widths = [] {
    std::array<double, kLevels> of_levels;
    for (int i = 0; i < kLevels; ++i) {
      of_levels[i] = static_cast<double>(LevelStart(i + 1) - LevelStart(i));
    }
    return of_levels;
  }();
  // A class that is used so many times as often as its kin is taken to be at all ages, until
  // its own lives say otherwise (proportional hazards: Cox, 1972).
  double ended = kPriorLives, expected = kPriorLives;
  for (int i = 0; i < kLevels; ++i) {
    ended += levels[i].ended;
    expected += levels[i].at_risk * kin_share[i];
  }
  double share[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    const double prior = std::min(1.0, kin_share[i] * ended / expected);
    share[i] = (levels[i].ended + kPriorLives * prior) / (levels[i].at_risk + kPriorLives);
  }
  // From the oldest level down: what comes next is joined as long as it is denser than what goes
  // before it, which gives the best ratio at each level. `waiting` is the share that gets so far.
  struct Stretch {
    double used, held, waiting;
  };
  Stretch ahead[kLevels];
  int count = 0;
  for (int i = kLevels - 1; i >= 0; --i) {
    Stretch own = {share[i], widths[i] * (1 - share[i] / 2), 1 - share[i]};
    for (; count > 0 && ahead[count - 1].used * own.held > own.used * ahead[count - 1].held;
         --count) {
      own.used += own.waiting * ahead[count - 1].used;
      own.held += own.waiting * ahead[count - 1].held;
      own.waiting *= ahead[count - 1].waiting;
    }
    ahead[count++] = own;
    densities[i] = static_cast<float>(own.used / own.held);
  }
}

ReuseTimes::LifeClass& ReuseTimes::ClassAt(int life_class) {
  std::unique_ptr<LifeClass>& lives = classes_[life_class];
  if (lives == nullptr) lives = std::make_unique<LifeClass>();
  return *lives;
}

void ReuseTimes::Advance(uint64_t now) {
  const uint64_t epoch = now >> epoch_bits_;
  if (epoch > newest_ + 2 * kEpochs) {  // nobody counts that long: the owner's clock has jumped
    newest_ = epoch - 2 * kEpochs;
  }
  while (newest_ < epoch) {
    ++newest_;
    if (newest_ - oldest_ == kEpochs) Fade();
  }
}

// The oldest cohorts are kept as sums only.
void ReuseTimes::Fade() {
  for (const auto& lives : classes_) {
    if (lives == nullptr) continue;
    Cohort& cohort = lives->cohorts[oldest_ % kEpochs];
    double at_risk = cohort.began;
    for (int i = 0; i < kLevels; ++i) {
      Level& level = lives->faded[i];
      level.at_risk = level.at_risk * kFade + at_risk;
      level.ended = level.ended * kFade + cohort.ended[i];
      at_risk -= cohort.ended[i];
    }
    cohort = Cohort{};
  }
  ++oldest_;
}

// Two epochs become one.
void ReuseTimes::Widen() {
  for (const auto& lives : classes_) {
    if (lives == nullptr) continue;
    auto wider = std::make_unique<LifeClass>();
    std::copy(std::begin(lives->faded), std::end(lives->faded), wider->faded);
    for (uint64_t epoch = oldest_; epoch <= newest_; ++epoch) {
      const Cohort& from = lives->cohorts[epoch % kEpochs];
      Cohort& to = wider->cohorts[epoch / 2 % kEpochs];
      to.began += from.began;
      for (int i = 0; i < kLevels; ++i) to.ended[i] += from.ended[i];
    }
    *lives = *wider;
  }
  ++epoch_bits_;
  oldest_ /= 2;
  newest_ /= 2;
}

void ReuseTimes::Count(const LifeClass& lives, uint64_t now, Level* levels) const {
  std::copy(std::begin(lives.faded), std::end(lives.faded), levels);
  for (uint64_t epoch = oldest_; epoch <= newest_; ++epoch) {
    const Cohort& cohort = lives.cohorts[epoch % kEpochs];
    if (cohort.began == 0) continue;
    const uint64_t end = (epoch + 1) << epoch_bits_;
    double at_risk = cohort.began;
    // The youngest of the cohort must have had the time to pass the level.
    for (int i = 0; i < kLevels && (i == 0 || end + LevelStart(i + 1) <= now); ++i) {
      levels[i].at_risk += at_risk;
      levels[i].ended += cohort.ended[i];
      at_risk -= cohort.ended[i];
    }
  }
}

}  // namespace terrace
