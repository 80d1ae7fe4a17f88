#include "kernels/block_array.h"

#include <string>

#include "gtest/gtest.h"

namespace terrace::kernels {
namespace {

TEST(BlockArrayTest, ElementsStayWhereTheyAreAcrossBlocks) {
  BlockArray<std::string> array;
  constexpr uint64_t kCount = 200'000;  // of 32 bytes: several blocks
  const std::string* first = &array.Append("first, and long enough to be allocated");
  for (uint64_t i = 1; i < kCount; ++i) array.Append(std::to_string(i));
  EXPECT_EQ(array.size(), kCount);
  EXPECT_EQ(&array[0], first);
  for (uint64_t i = 1; i < kCount; ++i) ASSERT_EQ(array[i], std::to_string(i));
}

TEST(BlockArrayTest, DestroysWhatItHolds) {
  const auto held = std::make_shared<int>(1);
  {
    BlockArray<std::shared_ptr<int>> array;
    for (int i = 0; i < 3; ++i) array.Append(held);
    array.Append();
    EXPECT_EQ(array[3], nullptr);
    EXPECT_EQ(held.use_count(), 4);
  }
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace terrace::kernels
