#include "kernels/buffer_pool.h"

#include <gtest/gtest.h>

namespace terrace::kernels {
namespace {

TEST(BufferPool, ABufferOfTheSizeIsUsedAgain) {
  const auto pool = std::make_shared<BufferPool>(1 << 20);
  auto first = pool->Take(100000);
  uint8_t* const memory = first->data();
  ASSERT_NE(memory, nullptr);
  EXPECT_GE(first->size_bytes(), 100000u);
  auto second = pool->Take(100000);
  EXPECT_NE(second->data(), memory);
  first.reset();
  EXPECT_EQ(pool->Take(60000)->data(), memory);  // up to twice what is asked for
  EXPECT_NE(pool->Take(20000)->data(), memory);
  EXPECT_NE(pool->Take(200000)->data(), memory);
}

TEST(BufferPool, NoMoreIsKeptThanAllowed) {
  const auto pool = std::make_shared<BufferPool>(10000);
  auto large = pool->Take(20000);
  large.reset();  // longer than all that may be kept
  auto a = pool->Take(8192), b = pool->Take(8192);
  uint8_t* const last = b->data();
  a.reset();
  b.reset();  // takes the place of the other
  EXPECT_EQ(pool->Take(8192)->data(), last);
}

TEST(BufferPool, BuffersMayOutliveTheirPool) {
  auto pool = std::make_shared<BufferPool>(1 << 20);
  const auto buffer = pool->Take(4096);
  pool.reset();
  buffer->data()[4095] = 1;
}

}  // namespace
}  // namespace terrace::kernels
