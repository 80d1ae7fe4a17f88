#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "replay/request_source.h"
#include "tests/replay/made_up_trace.h"

namespace terrace::replay {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::Keys;
using testing::Made;

std::vector<KnownRequest> All(RequestSource& source) {
  std::vector<KnownRequest> requests;
  KnownRequest request;
  while (true) {
    const auto more = source.Next(request);
    EXPECT_TRUE(more.ok());
    if (!*more) return requests;
    requests.push_back(request);
  }
}

MATCHER_P2(Sees, key, use, "") { return arg.key == uint64_t(key) && arg.use == uint64_t(use); }

TEST(WindowSource, KnowsNothingWithoutAWindow) {
  const auto requests = All(*NewWindowSource(Made({{1, 2}, {1}}), 0));
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_THAT(requests[0].next_uses, ElementsAre(kUnknownUse, kUnknownUse));
  EXPECT_THAT(requests[0].sightings, IsEmpty());
  EXPECT_EQ(requests[1].first_access, 2u);
  EXPECT_EQ(requests[1].number, 1u);
}

TEST(WindowSource, TellsUsesInsideTheWindowOnly) {
  //                                          access: 0  1    2    3    4  5
  const auto requests = All(*NewWindowSource(Made({{1, 2}, {3}, {1}, {2, 1}}), 2));
  ASSERT_EQ(requests.size(), 4u);
  EXPECT_THAT(requests[0].next_uses, ElementsAre(3, kUnknownUse));
  EXPECT_THAT(requests[0].sightings, ElementsAre(Sees(3, 2)));
  // 2 comes into view; 1 was in view.
  EXPECT_THAT(requests[1].sightings, ElementsAre(Sees(2, 4)));
  EXPECT_THAT(requests[2].next_uses, ElementsAre(5));
  EXPECT_THAT(requests[3].next_uses, ElementsAre(kUnknownUse, kUnknownUse));
}

TEST(WindowSource, AnObjectSeenAgainAfterItsUseIsASighting) {
  const auto requests = All(*NewWindowSource(Made({{1}, {2}, {3}, {1}}), 1));
  EXPECT_THAT(requests[0].next_uses, ElementsAre(kUnknownUse));
  EXPECT_THAT(requests[2].sightings, ElementsAre(Sees(1, 3)));
}

// Against the plain definition, on random traces.
TEST(WindowSource, MatchesTheDefinition) {
  std::mt19937 random(1);
  for (uint32_t window : {1u, 3u, 10u}) {
    Keys keys(60);
    for (auto& request : keys) {
      request.resize(random() % 4);
      for (uint64_t& key : request) key = random() % 12;
    }
    std::vector<std::pair<uint64_t, size_t>> accesses;  // key, request
    for (size_t r = 0; r < keys.size(); ++r) {
      for (uint64_t key : keys[r]) accesses.push_back({key, r});
    }
    const auto next_use = [&](uint64_t key, size_t from, size_t last_request) {
      for (size_t i = from; i < accesses.size() && accesses[i].second <= last_request; ++i) {
        if (accesses[i].first == key) return uint64_t{i};
      }
      return kUnknownUse;
    };
    // What a reader of hints believes must at each request be what is in view.
    std::vector<uint64_t> believed(12, kUnknownUse);
    for (const KnownRequest& request : All(*NewWindowSource(Made(keys), window))) {
      for (const Sighting& sighting : request.sightings) believed[sighting.key] = sighting.use;
      for (size_t i = 0; i < request.request.accesses.size(); ++i) {
        const uint64_t key = request.request.accesses[i].key;
        const uint64_t use = next_use(key, request.first_access + i + 1, request.number + window);
        EXPECT_EQ(request.next_uses[i], use);
        believed[key] = request.next_uses[i];
      }
      const size_t after = request.first_access + request.request.accesses.size();
      for (uint64_t key = 0; key < 12; ++key) {
        EXPECT_EQ(believed[key], next_use(key, after, request.number + window));
      }
    }
  }
}

}  // namespace
}  // namespace terrace::replay
