#include "config/object_layout.h"

#include <gtest/gtest.h>

#include <limits>

namespace terrace {
namespace {

ObjectLayout LayoutOf(std::vector<uint32_t> part_bytes) {
  ObjectLayout layout;
  layout.part_bytes_per_token = std::move(part_bytes);
  return layout;
}

TEST(ObjectLayout, PartsFollowTheIdentityPartAlignedAndInOrder) {
  const ObjectLayout layout = LayoutOf({10, 128});
  ASSERT_TRUE(layout.CheckObject(48, 3).ok());
  const std::vector<PartSpan> parts = layout.Parts(48, 3);
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0].offset, 0u);
  EXPECT_EQ(parts[0].bytes, 64u) << "keys of the first two of three grains";
  EXPECT_EQ(parts[1].offset, 64u);
  EXPECT_EQ(parts[1].bytes, 480u);
  EXPECT_EQ(parts[2].offset, 576u) << "64 + 480 rounded up to 64";
  EXPECT_EQ(parts[2].bytes, 6144u);
  EXPECT_EQ(layout.PayloadBytes(48, 3), 6720u);
}

TEST(ObjectLayout, AnOpaqueKeyHasAnEmptyIdentityPart) {
  const ObjectLayout layout = LayoutOf({100});
  ASSERT_TRUE(layout.CheckObject(1, 0).ok());
  EXPECT_EQ(layout.Parts(1, 0)[0].bytes, 0u);
  EXPECT_EQ(layout.Parts(1, 0)[1].offset, 0u);
  EXPECT_EQ(layout.PayloadBytes(1, 0), 128u);
}

TEST(ObjectLayout, ValidateNamesTheField) {
  EXPECT_EQ(LayoutOf({}).Validate().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(LayoutOf(std::vector<uint32_t>(kMaxParts - 1, 1)).Validate().ok());
  EXPECT_FALSE(LayoutOf(std::vector<uint32_t>(kMaxParts, 1)).Validate().ok());
  const absl::Status zero = LayoutOf({1, 0}).Validate();
  EXPECT_NE(zero.message().find("part_bytes_per_token[1]"), std::string::npos) << zero;
  ObjectLayout kind = LayoutOf({1});
  kind.kind = static_cast<ObjectKind>(9);
  EXPECT_NE(kind.Validate().message().find("layout.kind"), std::string::npos);
}

TEST(ObjectLayout, TokenAndGrainCountsMustAgree) {
  const ObjectLayout layout = LayoutOf({1});
  EXPECT_TRUE(layout.CheckObject(256, 16).ok());
  EXPECT_TRUE(layout.CheckObject(kMaxChunkTokens, kMaxChunkTokens / 16).ok());
  EXPECT_FALSE(layout.CheckObject(0, 0).ok());
  EXPECT_FALSE(layout.CheckObject(kMaxChunkTokens + 16, 0).ok());
  EXPECT_FALSE(layout.CheckObject(256, 15).ok());
  EXPECT_FALSE(layout.CheckObject(20, 1).ok()) << "4 tokens would be in no key";
  // 2^28 * 16 wraps to 0 in 32 bits, and the next to 16.
  EXPECT_FALSE(layout.CheckObject(16, (1u << 28) + 1).ok());
}

TEST(ObjectLayout, PayloadsBeyondTheLimitAreRefusedWithoutWrapping) {
  const uint32_t huge = std::numeric_limits<uint32_t>::max();
  EXPECT_FALSE(LayoutOf(std::vector<uint32_t>(kMaxParts - 1, huge))
                   .CheckObject(kMaxChunkTokens, kMaxChunkTokens / 16)
                   .ok());
  EXPECT_TRUE(LayoutOf({1u << 31, (1u << 31) - 64}).CheckObject(1, 0).ok()) << "exactly the limit";
  EXPECT_FALSE(LayoutOf({1u << 31, (1u << 31) - 64, 1}).CheckObject(1, 0).ok());
}

}  // namespace
}  // namespace terrace
