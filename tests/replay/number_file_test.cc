#include "replay/number_file.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace terrace::replay {
namespace {

constexpr uint64_t kCount = 200'000;  // some blocks, the last not full

NumberFile Counting() {
  auto file = NumberFile::Create();
  EXPECT_TRUE(file.ok()) << file.status();
  for (uint64_t i = 0; i < kCount; ++i) EXPECT_TRUE(file->Append(i).ok());
  return *std::move(file);
}

TEST(NumberFile, IsRewrittenFromTheEnd) {
  NumberFile file = Counting();
  uint64_t expected = kCount;
  ASSERT_TRUE(file.RewriteBackwards([&](uint64_t index, uint64_t number) {
                    EXPECT_EQ(index, --expected);
                    EXPECT_EQ(number, index);
                    return 2 * number;
                  })
                  .ok());
  EXPECT_EQ(expected, 0u);
  for (uint64_t i = 0; i < kCount; ++i) ASSERT_EQ(*file.At(i), 2 * i);
  EXPECT_EQ(*file.At(3), 6u);
}

TEST(NumberFile, NumbersAreSetWhereverTheyAre) {
  NumberFile file = Counting();
  ASSERT_TRUE(file.Set(kCount - 1, 7).ok());  // not written yet
  ASSERT_TRUE(file.Set(1, 8).ok());
  EXPECT_EQ(*file.At(1), 8u);
  ASSERT_TRUE(file.Set(2, 9).ok());  // in the block that was read
  EXPECT_EQ(*file.At(2), 9u);
  EXPECT_EQ(*file.At(kCount - 1), 7u);
  EXPECT_EQ(*file.At(kCount - 2), kCount - 2);
}

TEST(NumberFile, SaysWhereItCannotBe) {
  setenv("TMPDIR", "/nowhere/at/all", 1);
  const auto file = NumberFile::Create();
  unsetenv("TMPDIR");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(file.status().message().find("/nowhere/at/all"), absl::string_view::npos);
}

}  // namespace
}  // namespace terrace::replay
