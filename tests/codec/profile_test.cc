#include "codec/profile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/codec_profile.h"

namespace terrace::codec {
namespace {

std::shared_ptr<const Profile> ProfileWith(const std::vector<OperatingPoint>& points) {
  const auto profile = Profile::Parse(testing::MakeProfile({.points = points}));
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *profile;
}

std::string RefusalOf(const std::vector<OperatingPoint>& points) {
  const auto profile = Profile::Parse(testing::MakeProfile({.points = points}));
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(profile.status().message());
}

TEST(Profile, SaysWhichModelItIsForAndWhatWasMeasured) {
  const auto profile = *Profile::Parse(
      testing::MakeProfile({.model_id = "smollm2", .points = {{-160, 1.5f, .01f}}}));
  EXPECT_EQ(profile->model_id(), "smollm2");
  ASSERT_EQ(profile->points().size(), 1u);
  EXPECT_EQ(profile->points()[0].lambda16, -160);
  EXPECT_EQ(profile->points()[0].bits_per_value, 1.5f);
  EXPECT_EQ(profile->points()[0].mean_kl, .01f);
  EXPECT_EQ((*Profile::Parse(testing::MakeProfile({})))->model_id(), "");
}

TEST(Profile, TheStepForALossLiesBetweenTheMeasuredOnes) {
  const auto profile = ProfileWith({{-200, 3, .001f}, {-160, 2, .01f}, {-120, 1, .1f}});
  EXPECT_EQ(profile->StepFor(.01), -160);
  EXPECT_EQ(profile->StepFor(.00999), -161);
  EXPECT_EQ(profile->StepFor(.00316), -181);
  EXPECT_EQ(profile->StepFor(.0316), -141);
}

TEST(Profile, NoStepIsLargerThanWhatWasMeasured) {
  const auto profile = ProfileWith({{-200, 3, .001f}, {-160, 2, .01f}});
  EXPECT_EQ(profile->StepFor(5), -160);
  EXPECT_EQ(profile->StepFor(std::numeric_limits<double>::infinity()), -160);
  EXPECT_EQ(profile->StepFor(.0009), std::nullopt);
  EXPECT_EQ(profile->StepFor(0), std::nullopt);
  EXPECT_EQ(profile->StepFor(-1), std::nullopt);
  EXPECT_EQ(profile->StepFor(std::nan("")), std::nullopt);
  EXPECT_EQ(ProfileWith({})->StepFor(1), std::nullopt);
}

TEST(Profile, EqualLossesGiveTheLargestOfTheirSteps) {
  const auto profile = ProfileWith({{-200, 3, .01f}, {-160, 2, .01f}, {-150, 2, .02f}});
  EXPECT_EQ(profile->StepFor(.011), -159);
}

TEST(Profile, OperatingPointsOutOfRangeAreRefusedByName) {
  const float nan = std::nanf("");
  EXPECT_EQ(RefusalOf({{-1025, 1, 1}}),
            "profile: operating point 0: lambda16 must be -1024 .. 1024");
  EXPECT_EQ(RefusalOf({{0, nan, 1}}),
            "profile: operating point 0: bits a value must be above 0, at most 64");
  EXPECT_EQ(RefusalOf({{0, 1, 0}}),
            "profile: operating point 0: mean KL must be finite and above 0");
  EXPECT_EQ(RefusalOf({{0, 1, nan}}),
            "profile: operating point 0: mean KL must be finite and above 0");
  const std::string order =
      "profile: operating point 1: lambda16 and mean KL must be above and at least those of the "
      "point before";
  EXPECT_EQ(RefusalOf({{0, 1, 1}, {0, 1, 2}}), order);
  EXPECT_EQ(RefusalOf({{0, 1, 1}, {1, 1, .5f}}), order);
  EXPECT_EQ(RefusalOf(std::vector<OperatingPoint>(65)),
            "profile: number of operating points must be 0 .. 64");
}

TEST(Profile, AModelIdOrPointsThatAreCutOffAreDataLoss) {
  std::vector<uint8_t> bytes = testing::MakeProfile({.model_id = "smollm2", .points = {{0, 1, 1}}});
  for (size_t size = 128; size < 150; ++size) {
    std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + size);
    testing::SealProfile(&cut);
    EXPECT_EQ(Profile::Parse(cut).status().code(), absl::StatusCode::kDataLoss) << size;
  }
  const std::vector<uint8_t> longer = testing::MakeProfile({.model_id = std::string(513, 'x')});
  EXPECT_EQ(Profile::Parse(longer).status().message(),
            "profile: length of model_id must be 0 .. 512");
}

}  // namespace
}  // namespace terrace::codec
