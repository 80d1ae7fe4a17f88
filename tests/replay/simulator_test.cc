#include "replay/simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/replay/made_up_trace.h"
#include "tiers/eviction/registry.h"

namespace terrace::replay {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::Keys;
using testing::Made;

PolicyMaker Named(const char* name) {
  return [name](const PolicyContext& context) { return NewPolicy(name, context); };
}

Counts Served(const SimulatorOptions& options, const PolicyMaker& make, Keys keys,
              uint32_t window = 0) {
  const auto simulator = Simulator::Create(options, make);
  EXPECT_TRUE(simulator.ok()) << simulator.status();
  const auto source = NewWindowSource(Made(std::move(keys)), window);
  KnownRequest request;
  while (*source->Next(request)) {
    const absl::Status status = (*simulator)->Serve(request);
    EXPECT_TRUE(status.ok()) << status;
  }
  return (*simulator)->counts();
}

// Logs what the simulator says, and evicts the oldest.
class Recorder final : public EvictionPolicy {
 public:
  struct Log {
    std::vector<std::string> calls;
    std::vector<TrackInfo> tracked;
  };
  explicit Recorder(Log& log) : log_(log), lru_(NewLruPolicy()) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    log_.calls.push_back("track " + std::to_string(id));
    log_.tracked.push_back(info);
    lru_->Track(id, info);
  }
  void Touch(PolicyId id) override {
    log_.calls.push_back("touch " + std::to_string(id));
    lru_->Touch(id);
  }
  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    const auto id = lru_->Evict(evictable);
    log_.calls.push_back(id ? "evict " + std::to_string(*id) : "nothing");
    return id;
  }
  void Forget(PolicyId id) override { lru_->Forget(id); }
  void Hint(PolicyId id, uint64_t next_use, float) override {
    log_.calls.push_back("hint " + std::to_string(id) + " at " + std::to_string(next_use));
  }

 private:
  Log& log_;
  std::unique_ptr<EvictionPolicy> lru_;
};

std::vector<std::string> CallsOf(const SimulatorOptions& options, Keys keys, uint32_t window,
                                 Recorder::Log& log) {
  Served(
      options, [&log](const PolicyContext&) { return std::make_unique<Recorder>(log); },
      std::move(keys), window);
  return log.calls;
}

TEST(Simulator, BlockHitsAreByThemselves) {
  // 1 leaves for 3, so the last request misses 1 and hits 2 only when blocks count alone.
  const Keys keys = {{1}, {2}, {3}, {1}, {2}};
  const Counts two = Served({.capacity = 2}, Named("lru"), keys);
  EXPECT_EQ(two.accesses, 5u);
  EXPECT_EQ(two.hits, 0u);
  EXPECT_EQ(two.evictions, 3u);
  const Counts three = Served({.capacity = 3}, Named("lru"), keys);
  EXPECT_EQ(three.hits, 2u);
  EXPECT_EQ(three.evictions, 0u);
}

TEST(Simulator, APrefixHitNeedsItsWholePrefix) {
  // In order, the root is the oldest of its request and leaves first: the children then hit alone.
  const Keys keys = {{1, 2, 3}, {4}, {1, 2, 3}};
  EXPECT_EQ(Served({.capacity = 3}, Named("lru"), keys).hits, 0u);  // each evicts the next
  // As a prefix, the leaf gives way.
  const Counts prefix =
      Served({.semantics = Semantics::kPrefix, .capacity = 3}, Named("lru"), keys);
  EXPECT_EQ(prefix.hits, 2u);
  EXPECT_EQ(prefix.evictions, 2u);
}

TEST(Simulator, PrefixesTouchTheDeepestFirst) {
  Recorder::Log log;
  EXPECT_THAT(
      CallsOf({.semantics = Semantics::kPrefix, .capacity = 3}, {{10, 11, 12}, {10, 13}}, 0, log),
      ElementsAre("track 2", "track 1", "track 0",  //
                  "evict 2", "track 3", "touch 0"));
  EXPECT_EQ(log.tracked[0].parent, 1u);
  EXPECT_EQ(log.tracked[0].depth, 2);
  EXPECT_EQ(log.tracked[2].parent, kNoPolicyId);
  EXPECT_EQ(log.tracked[3].parent, 0u);
  EXPECT_NE(log.tracked[0].key_head, 0u);
  EXPECT_NE(log.tracked[0].key_head, log.tracked[3].key_head);
}

TEST(Simulator, WhatTheRequestWantsStaysWhileItIsServed) {
  Recorder::Log log;
  // 1 is the oldest, but 2 (id 1) leaves: the request wants 1.
  EXPECT_THAT(CallsOf({.semantics = Semantics::kPrefix, .capacity = 2}, {{1}, {2}, {1, 3}}, 0, log),
              ElementsAre("track 0", "track 1", "evict 1", "track 2", "touch 0"));
}

TEST(Simulator, AsMuchOfAPrefixEntersAsFits) {
  const SimulatorOptions options = {.semantics = Semantics::kPrefix, .capacity = 2};
  const Counts counts = Served(options, Named("lru"), {{1, 2, 3, 4}, {1, 2, 3}});
  EXPECT_EQ(counts.hits, 2u);
  EXPECT_EQ(counts.bypassed, 3u);
}

TEST(Simulator, AnObjectTwiceInARequestEntersOnce) {
  for (const Semantics semantics : {Semantics::kBlock, Semantics::kPrefix}) {
    const SimulatorOptions options = {.semantics = semantics, .capacity = 3};
    const Counts counts = Served(options, Named("lru"), {{1, 2, 1}, {1, 2, 3}}, 5);
    EXPECT_EQ(counts.hits, semantics == Semantics::kBlock ? 3u : 2u);
    EXPECT_EQ(counts.evictions, 0u);
  }
}

TEST(Simulator, HintsFollowTouchAndWhatComesIntoView) {
  Recorder::Log log;
  EXPECT_THAT(CallsOf({.capacity = 3}, {{1}, {2}, {1}, {1}}, 1, log),
              ElementsAre("track 0",                 //
                          "hint 0 at 2", "track 1",  // request 2 comes into view
                          "touch 0", "hint 0 at 3",  //
                          "touch 0"));
}

TEST(Simulator, CapacityCountsSizes) {
  const auto simulator =
      Simulator::Create({.capacity = 10, .capacity_in_objects = false}, Named("lru"));
  ASSERT_TRUE(simulator.ok());
  KnownRequest request;
  const auto access = [&](uint64_t key, uint64_t size) {
    request.request.accesses = {{.key = key, .size = size}};
    request.next_uses = {kUnknownUse};
    EXPECT_TRUE((*simulator)->Serve(request).ok());
    ++request.first_access;
    ++request.number;
  };
  access(1, 4);
  access(2, 6);
  access(1, 4);   // hit
  access(3, 11);  // never fits
  access(4, 5);   // evicts 2
  access(1, 4);   // hit
  const Counts& counts = (*simulator)->counts();
  EXPECT_EQ(counts.hits, 2u);
  EXPECT_EQ(counts.hit_size, 8u);
  EXPECT_EQ(counts.size, 34u);
  EXPECT_EQ(counts.evictions, 1u);
  EXPECT_EQ(counts.bypassed, 1u);
}

TEST(Simulator, SaysWhichAccessOfAVictimWasItsLast) {
  const auto simulator = Simulator::Create({.capacity = 2}, Named("lru"));
  std::vector<uint64_t> last;
  (*simulator)->OnEvict([&](uint64_t access) { last.push_back(access); });
  const auto source = NewWindowSource(Made({{1, 2}, {1}, {3}, {4}}), 0);
  KnownRequest request;
  while (*source->Next(request)) ASSERT_TRUE((*simulator)->Serve(request).ok());
  EXPECT_THAT(last, ElementsAre(1, 2));
}

TEST(Simulator, RefusesNoCapacityAndPoliciesThatEvictNothing) {
  EXPECT_FALSE(Simulator::Create({.capacity = 0}, Named("lru")).ok());
  EXPECT_FALSE(Simulator::Create({.capacity = 1}, Named("no such policy")).ok());
  class Stubborn final : public EvictionPolicy {
    void Track(PolicyId, const TrackInfo&) override {}
    void Touch(PolicyId) override {}
    std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)>) override { return {}; }
    void Forget(PolicyId) override {}
  };
  const auto simulator = Simulator::Create(
      {.capacity = 1}, [](const PolicyContext&) { return std::make_unique<Stubborn>(); });
  const auto source = NewWindowSource(Made({{1}, {2}}), 0);
  KnownRequest request;
  ASSERT_TRUE(*source->Next(request));
  EXPECT_TRUE((*simulator)->Serve(request).ok());
  ASSERT_TRUE(*source->Next(request));
  EXPECT_EQ((*simulator)->Serve(request).code(), absl::StatusCode::kInternal);
}

// Every policy, on every kind of trace: what it holds never exceeds the tier.
TEST(Simulator, EveryPolicyKeepsToTheTier) {
  Keys keys;
  for (uint64_t i = 0; i < 400; ++i) keys.push_back({i % 7, 100 + i % 13, 1000 + i * i % 101});
  for (const PolicyEntry& entry : Policies()) {
    for (const Semantics semantics : {Semantics::kBlock, Semantics::kPrefix}) {
      SCOPED_TRACE(std::string(entry.name));
      const auto named = [&](const PolicyContext& context) {
        return NewPolicy(entry.name, context);
      };
      const Counts counts = Served({.semantics = semantics, .capacity = 20}, named, keys, 8);
      EXPECT_EQ(counts.accesses, 1200u);
      EXPECT_GT(counts.evictions, 0u);
      if (semantics == Semantics::kBlock) {  // all misses enter, and 20 of them stay
        EXPECT_EQ(counts.evictions + 20, counts.accesses - counts.hits);
      }
    }
  }
}

}  // namespace
}  // namespace terrace::replay
