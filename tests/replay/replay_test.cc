#include "replay/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tiers/eviction/registry.h"

namespace terrace::replay {
namespace {

const std::string kData = TERRACE_TRACES;

ReplayJob JobOf(const std::string& trace, const std::string& policy, uint64_t capacity) {
  ReplayJob job;
  job.trace = kData + "/" + trace;
  job.policy = policy;
  job.simulator.capacity = capacity;
  return job;
}

TEST(Replay, EveryPolicyReplaysEveryFormat) {
  for (const char* trace : {"mooncake.jsonl", "ragpulse", "olmoe.jsonl", "tiny_olmoe.jsonl"}) {
    const auto everything = Replay(JobOf(trace, "lru", 100'000));
    ASSERT_TRUE(everything.ok()) << everything.status();
    for (const PolicyEntry& entry : Policies()) {
      SCOPED_TRACE(std::string(trace) + " " + std::string(entry.name));
      for (const uint64_t capacity : {3, 30, 100'000}) {
        const auto report = Replay(JobOf(trace, std::string(entry.name), capacity));
        ASSERT_TRUE(report.ok()) << report.status();
        EXPECT_EQ(report->counts.accesses, everything->counts.accesses);
        EXPECT_LE(report->counts.hits, everything->counts.hits);
        if (capacity == 100'000) {
          EXPECT_EQ(report->counts.hits, everything->counts.hits);
        }
      }
    }
  }
}

TEST(Replay, NobodyBeatsMin) {
  for (const uint64_t capacity : {30, 100, 150, 200}) {
    const auto min = Replay(JobOf("olmoe.jsonl", "min", capacity));
    ASSERT_TRUE(min.ok()) << min.status();
    for (const PolicyEntry& entry : Policies()) {
      const auto report = Replay(JobOf("olmoe.jsonl", std::string(entry.name), capacity));
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_LE(report->counts.hits, min->counts.hits) << std::string(entry.name);
    }
  }
}

TEST(Replay, CountsTokens) {
  ReplayJob job = JobOf("ragpulse", "lru", 600);
  job.simulator.capacity_in_objects = false;
  const auto report = Replay(job);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->counts.requests, 6u);
  EXPECT_EQ(report->counts.accesses, 30u);
  EXPECT_EQ(report->counts.hits, 0u);  // passage 7374 is gone when it is wanted again
  job.simulator.capacity = 100'000;
  EXPECT_EQ(Replay(job)->counts.hits, 1u);
  EXPECT_EQ(Replay(job)->counts.hit_size, 253u);
}

TEST(Replay, ReportsProgressOfEachPass) {
  std::vector<std::string> passes;
  ReplayJob job = JobOf("mooncake.jsonl", "min", 10);
  job.progress = [&](std::string_view pass, uint64_t) { passes.emplace_back(pass); };
  ASSERT_TRUE(Replay(job).ok());
  EXPECT_THAT(passes, ::testing::ElementsAre("next uses", "replay"));
}

TEST(Replay, AWindowHelpsAPolicyThatTakesNoHints) {
  // With all of the trace in view it is the optimum.
  ReplayJob job = JobOf("olmoe.jsonl", "lru", 150);
  const uint64_t lru = Replay(job)->counts.hits;
  job.window = 3;
  const uint64_t windowed = Replay(job)->counts.hits;
  EXPECT_GT(windowed, lru);
  EXPECT_EQ(windowed, Replay(JobOf("olmoe.jsonl", "min", 150))->counts.hits);
}

TEST(Replay, FailsAsItsPartsDo) {
  EXPECT_EQ(Replay(JobOf("nothing", "lru", 1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Replay(JobOf("olmoe.jsonl", "nobody", 1)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Replay(JobOf("olmoe.jsonl", "lru", 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace::replay
