#include "tiers/eviction/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace terrace {
namespace {

PolicyContext Room() {
  PolicyContext context;
  context.capacity_bytes = 100;
  return context;
}

TEST(Registry, MakesEveryPolicyThatItNames) {
  std::set<std::string_view> names;
  for (const PolicyEntry& entry : Policies()) {
    EXPECT_TRUE(NewPolicy(entry.name, Room()).ok()) << entry.name;
    EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
    EXPECT_FALSE(entry.what.empty()) << entry.name;
  }
}

TEST(Registry, AnUnknownNameIsAnsweredWithTheKnown) {
  const auto policy = NewPolicy("fifo", Room());
  EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(policy.status().message());
  EXPECT_THAT(message, ::testing::HasSubstr("'fifo'"));
  for (const PolicyEntry& entry : Policies()) {
    EXPECT_THAT(message, ::testing::HasSubstr(std::string(entry.name)));
  }
}

TEST(Registry, ContextsWithoutRoomOrLayersAreRefused) {
  PolicyContext context = Room();
  context.capacity_bytes = 0;
  EXPECT_EQ(NewPolicy("lru", context).status().code(), absl::StatusCode::kInvalidArgument);
  context = Room();
  context.layers = 0;
  EXPECT_EQ(NewPolicy("lru", context).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
