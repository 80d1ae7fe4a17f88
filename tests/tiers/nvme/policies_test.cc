// The decisions of the NVMe tier that need no device: admission, the write budget, health. Time is
// an argument.
#include <chrono>

#include "gmock/gmock.h"
#include "tiers/nvme/admission.h"
#include "tiers/nvme/health.h"
#include "tiers/nvme/write_budget.h"

namespace terrace::nvme {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr Admission::Speeds kSpeeds = {1e9, 1e9};  // 1 MiB: a millisecond to read, one to write

Admission::Candidate Candidate(uint64_t seed, uint32_t cost_us, bool hinted = false) {
  Admission::Candidate candidate;
  for (size_t i = 0; i < 8; ++i) candidate.key.bytes[i] = static_cast<uint8_t>(seed >> (8 * i));
  candidate.bytes = kMiB;
  candidate.cost_us = cost_us;
  candidate.hinted = hinted;
  return candidate;
}

TEST(Admission, TakesWhatSavesMoreThanItCosts) {
  Admission admission(AdmissionPolicy::kAuto);
  EXPECT_TRUE(admission.Admit(Candidate(1, 1'000'000), kSpeeds));
  EXPECT_FALSE(admission.Admit(Candidate(2, 500), kSpeeds));   // faster to remake than to read
  EXPECT_FALSE(admission.Admit(Candidate(3, 3000), kSpeeds));  // saves 2 ms, one time in four
  EXPECT_TRUE(admission.Admit(Candidate(4, 0), kSpeeds));      // not known
  EXPECT_EQ(admission.rejected(), 2u);
}

TEST(Admission, TakesWhatIsWantedTwiceOrHinted) {
  for (AdmissionPolicy policy : {AdmissionPolicy::kAuto, AdmissionPolicy::kSecondTouch}) {
    Admission admission(policy);
    EXPECT_FALSE(admission.Admit(Candidate(1, 500), kSpeeds));
    EXPECT_TRUE(admission.Admit(Candidate(1, 500), kSpeeds));
    EXPECT_FALSE(admission.Admit(Candidate(1, 500), kSpeeds)) << "its second touch is used up";
    EXPECT_TRUE(admission.Admit(Candidate(2, 500, true), kSpeeds));
  }
  Admission second(AdmissionPolicy::kSecondTouch);
  EXPECT_FALSE(second.Admit(Candidate(1, 1'000'000), kSpeeds));
  Admission always(AdmissionPolicy::kAlways);
  EXPECT_TRUE(always.Admit(Candidate(1, 500), kSpeeds));
}

TEST(Admission, FollowsHowOftenRecordsComeBack) {
  Admission admission(AdmissionPolicy::kAuto);
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(admission.Admit(Candidate(i, 1'000'000), kSpeeds));
    admission.Reused();
  }
  EXPECT_GT(admission.reuse(), 0.9);
  EXPECT_TRUE(admission.Admit(Candidate(9999, 3000), kSpeeds));
}

TEST(Admission, ForgetsWhatItHasNotSeenForLong) {
  Admission admission(AdmissionPolicy::kSecondTouch);
  EXPECT_FALSE(admission.Admit(Candidate(0, 500), kSpeeds));
  for (uint64_t i = 1; i <= 70'000; ++i) EXPECT_FALSE(admission.Admit(Candidate(i, 500), kSpeeds));
  EXPECT_FALSE(admission.Admit(Candidate(0, 500), kSpeeds));
  EXPECT_TRUE(admission.Admit(Candidate(70'000, 500), kSpeeds));
}

constexpr uint64_t kHourUs = uint64_t{3600} * 1'000'000;
constexpr uint64_t kStart = 1000 * kHourUs;

TEST(WriteBudget, NoDaySeesMoreThanTheBudget) {
  constexpr uint64_t kDay = 2400 * kMiB;
  WriteBudget budget(kDay, {}, kStart);
  std::vector<uint64_t> taken;  // by the minute
  for (uint64_t minute = 0; minute < 3 * 24 * 60; ++minute) {
    taken.push_back(0);
    while (budget.Take(kMiB, kStart + minute * kHourUs / 60)) taken.back() += kMiB;
  }
  uint64_t day = 0, most = 0;
  for (size_t minute = 0; minute < taken.size(); ++minute) {
    day += taken[minute];
    if (minute >= 24 * 60) day -= taken[minute - 24 * 60];
    most = std::max(most, day);
  }
  EXPECT_LE(most, kDay);
  EXPECT_GT(most, kDay * 9 / 10);
}

TEST(WriteBudget, SurvivesARestartAndACrashGrantsNothingTwice) {
  constexpr uint64_t kDay = 400 * kMiB;
  WriteBudget before(kDay, {}, kStart);
  WriteBudget::Saved saved = before.Save(kStart);
  uint64_t taken = 0;
  while (before.Take(kMiB, kStart)) {
    taken += kMiB;
    if (before.should_save()) saved = before.Save(kStart);
  }
  EXPECT_EQ(taken, 100 * kMiB);  // a quarter of the day's
  WriteBudget crashed(kDay, saved, kStart);
  EXPECT_LE(crashed.available_bytes(kStart), kMiB);
  WriteBudget closed(kDay, before.SaveAll(kStart), kStart);
  EXPECT_FALSE(closed.Take(kMiB, kStart));
  EXPECT_TRUE(
      closed.Take(12 * kMiB, kStart + kHourUs));  // three quarters of the day's, by the hour
  // A clock that was set back grants nothing, and goes on from there.
  EXPECT_FALSE(closed.Take(kMiB, kStart - 100 * kHourUs));
  EXPECT_TRUE(closed.Take(kMiB, kStart - 99 * kHourUs));
}

TEST(WriteBudget, WithoutALimitEverythingGoes) {
  WriteBudget budget(0, {}, kStart);
  EXPECT_TRUE(budget.Take(UINT64_MAX / 2, kStart));
  EXPECT_FALSE(budget.should_save());
}

TEST(WriteBudget, ARequestLongerThanTheBucketWaitsForAFullOne) {
  WriteBudget budget(40 * kMiB, {}, kStart);
  EXPECT_TRUE(budget.Take(30 * kMiB, kStart));
  EXPECT_FALSE(budget.Take(30 * kMiB, kStart + 8 * kHourUs));
  EXPECT_TRUE(budget.Take(30 * kMiB, kStart + 25 * kHourUs));
}

const absl::Status kIoError = absl::UnavailableError("read seg-1: Input/output error");

TEST(Health, AStormTakesTheTierOutOfServiceUntilAProbeSucceeds) {
  Health health;
  Health::Time now{};
  for (int i = 0; i < 7; ++i) health.Note(kIoError, now);
  EXPECT_TRUE(health.in_service());
  health.Note(kIoError, now);
  EXPECT_FALSE(health.in_service());
  EXPECT_FALSE(health.may_write(now));
  EXPECT_THAT(health.Describe(now), HasSubstr("out of service: read seg-1"));
  EXPECT_FALSE(health.probe_due(now));
  now += milliseconds(300);
  ASSERT_TRUE(health.probe_due(now));
  health.ProbeBegun(now);
  EXPECT_FALSE(health.probe_due(now + milliseconds(300))) << "one at a time";
  health.ProbeEnded(kIoError, now);
  EXPECT_FALSE(health.in_service());
  now += milliseconds(300);
  ASSERT_TRUE(health.probe_due(now));
  health.ProbeEnded(absl::OkStatus(), now);
  EXPECT_TRUE(health.in_service());
  EXPECT_EQ(health.Describe(now), "ok");
}

TEST(Health, ErrorsAmongManySuccessesAreNoStorm) {
  Health health;
  Health::Time now{};
  for (int i = 0; i < 1000; ++i) {
    health.Note(absl::OkStatus(), now);
    if (i % 10 == 0) health.Note(kIoError, now);
    now += milliseconds(1);
  }
  // Nor are errors far apart.
  for (int i = 0; i < 100; ++i) health.Note(kIoError, now += milliseconds(500));
  EXPECT_TRUE(health.in_service());
}

TEST(Health, AFullDiskIsReadOnlyForAWhile) {
  Health health;
  Health::Time now{};
  health.Note(absl::ResourceExhaustedError("write seg-1: No space left on device"), now);
  EXPECT_TRUE(health.in_service());
  EXPECT_FALSE(health.may_write(now));
  EXPECT_THAT(health.Describe(now), HasSubstr("read-only: write seg-1: No space"));
  EXPECT_TRUE(health.may_write(now + std::chrono::seconds(6)));
  EXPECT_EQ(health.Describe(now + std::chrono::seconds(6)), "ok");
}

}  // namespace
}  // namespace terrace::nvme
