#include "daemon/codec_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/test_loop.h"

namespace terrace {
namespace {

TEST(CodecPool, TheMostUrgentGoesFirstAndResultsComeOnTheLoop) {
  TestLoop loop;
  CodecPool pool(1, loop.post());
  std::promise<void> begun, open;
  pool.Run(
      {},
      [&] {
        begun.set_value();
        open.get_future().wait();
      },
      [] {});
  begun.get_future().wait();  // the only thread is busy: the rest queues
  std::vector<int> order;
  const auto run = [&](CodecPool::Urgency urgency, int name) {
    pool.Run(
        urgency, [] {}, [&order, name] { order.push_back(name); });
  };
  run({IoPriority::kBackground, 1, 0}, 5);
  run({IoPriority::kDemand, 2, 0}, 3);
  run({IoPriority::kDemand, 1, 1}, 2);
  run({IoPriority::kDemand, 1, 0}, 1);
  run({IoPriority::kQueued, 1, 0}, 4);
  run({IoPriority::kBackground, 1, 0}, 6);  // equals in their order
  open.set_value();
  ASSERT_TRUE(loop.RunUntil([&] { return order.size() == 6; }));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4, 5, 6}));
}

TEST(CodecPool, WhatHasNotBegunIsDroppedAtTheEnd) {
  TestLoop loop;
  std::promise<void> begun, open;
  bool ran = false;
  auto pool = std::make_unique<CodecPool>(1, loop.post());
  pool->Run(
      {},
      [&] {
        begun.set_value();
        open.get_future().wait();
      },
      [] {});
  begun.get_future().wait();
  pool->Run(
      {}, [&ran] { ran = true; }, [] {});
  std::thread end([&pool] { pool.reset(); });  // waits for what has begun
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  open.set_value();
  end.join();
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace terrace
