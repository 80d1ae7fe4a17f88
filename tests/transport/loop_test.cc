#include "transport/loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>
#include <vector>

namespace terrace {
namespace {

TEST(LoopTest, RunsPostedClosuresInOrderAndStopsFromOne) {
  Loop loop;
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    loop.Post([&order, i] { order.push_back(i); });
  }
  loop.Post([&loop] { loop.Stop(); });
  loop.Run();
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(LoopTest, AClosureMayPostAnother) {
  Loop loop;
  int depth = 0;
  std::function<void()> next = [&] {
    if (++depth == 10) return loop.Stop();
    loop.Post(next);
  };
  loop.Post(next);
  loop.Run();
  EXPECT_EQ(depth, 10);
}

TEST(LoopTest, PostsFromManyThreadsAllRunOnTheLoopThread) {
  Loop loop;
  const auto loop_thread = std::this_thread::get_id();
  int ran = 0;  // loop thread only: a race here is a finding of tsan
  constexpr int kThreads = 8, kEach = 1000;
  std::vector<std::thread> threads;
  const PostFn post = loop.poster();
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, post] {
      for (int i = 0; i < kEach; ++i) {
        post([&] {
          EXPECT_EQ(std::this_thread::get_id(), loop_thread);
          if (++ran == kThreads * kEach) loop.Stop();
        });
      }
    });
  }
  loop.Run();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(ran, kThreads * kEach);
}

TEST(LoopTest, StopBeforeRunEndsItAndItCanRunAgain) {
  Loop loop;
  loop.Stop();
  loop.Run();
  bool ran = false;
  loop.Post([&] {
    ran = true;
    loop.Stop();
  });
  loop.Run();
  EXPECT_TRUE(ran);
}

TEST(LoopTest, EveryRepeats) {
  Loop loop;
  int ticks = 0;
  loop.Every(1, [&] {
    if (++ticks == 5) loop.Stop();
  });
  loop.Run();
  EXPECT_GE(ticks, 5);
}

TEST(LoopTest, ClosuresNotRunAreDestroyedWithTheLoop) {
  auto token = std::make_shared<int>(1);
  {
    Loop loop;
    loop.Post([token] {});
    EXPECT_EQ(token.use_count(), 2);
  }
  EXPECT_EQ(token.use_count(), 1);
}

}  // namespace
}  // namespace terrace
