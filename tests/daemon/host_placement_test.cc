// What stays in host memory, through the service: objects of several kinds and of prefixes, stored
// as clients store them into an arena that is too small, with no lower tier to fall back on.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "daemon/cache_service.h"
#include "kernels/checksum.h"
#include "tests/support/test_loop.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kObjectBytes = kMiB;                   // of one token
constexpr uint64_t kHostObjects = 32, kOtherObjects = 4;  // of alice, of bob

class HostPlacementTest : public ::testing::Test {
 protected:
  void Start(const std::string& policy, const KindLimits& limits = {}) {
    std::string pattern = "/var/tmp/terrace-placement-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    options_ = DefaultOptions();
    options_.server.state_dir = directory_;
    options_.host.capacity = Size::Bytes((kHostObjects + kOtherObjects) * kMiB);
    options_.host.headroom = Size::Bytes(kHostObjects * kMiB);
    options_.host.policy = policy;
    options_.placement.limits = limits;
    options_.nvme.enabled = false;
    options_.tenants = {
        {.name = "alice", .uids = {1}, .host_capacity = Size::Bytes(kHostObjects * kMiB)},
        {.name = "bob", .uids = {2}, .host_capacity = Size::Bytes(kOtherObjects * kMiB)}};
    options_.server.socket_path = directory_ + "/s";
    const auto resolved = ResolveOptions(options_);
    ASSERT_TRUE(resolved.ok()) << resolved.status();
    options_ = *resolved;
    auto tenants = BuildTenants(options_, loop_.post());
    ASSERT_TRUE(tenants.ok()) << tenants.status();
    tenants_ = *std::move(tenants);
    service_ = std::make_unique<CacheService>(options_, tenants_, nullptr, loop_.post());
    session_ = service_->OpenSession({1, 1234}, {})->session_id;
    for (const ObjectKind kind : {ObjectKind::kKv, ObjectKind::kExpert}) {
      ObjectLayout layout;
      layout.fingerprint = Fingerprint{static_cast<uint8_t>(kind)};
      layout.kind = kind;
      layout.part_bytes_per_token = {kObjectBytes};
      layouts_.push_back(*service_->RegisterLayout(session_, layout, std::nullopt));
    }
  }
  void Stop() {
    service_.reset();
    tenants_.clear();
    layouts_.clear();
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override { Stop(); }

  static ObjectKey Key(uint32_t number) {
    ObjectKey key;
    key.bytes.fill(0x55);
    std::memcpy(key.bytes.data(), &number, sizeof number);
    return key;
  }
  uint32_t layout(ObjectKind kind) const { return layouts_[kind == ObjectKind::kKv ? 0 : 1]; }

  ReserveResult Reserve(ObjectKind kind, const ObjectKey& key, const ObjectKey& parent = {},
                        uint32_t cost_us = 0, uint32_t position = kUnknownPosition) {
    ReserveItem item;
    item.key = key;
    item.parent = parent;
    item.cost_us = cost_us;
    item.position = position;
    ReserveResult reserved;
    loop_.RunUntil([&] {
      reserved = (*service_->Reserve(session_, layout(kind), {&item, 1}))[0];
      return reserved.retry_after_ms == 0;
    });
    return reserved;
  }
  absl::Status Commit(const ReserveResult& reserved) {
    if (!reserved.status.ok()) return reserved.status;
    CommitItem commit{reserved.reservation_id, {0, 0}, {}};
    return (*service_->Commit(session_, {&commit, 1}))[0];
  }
  absl::Status Store(ObjectKind kind, const ObjectKey& key, const ObjectKey& parent = {},
                     uint32_t cost_us = 0) {
    return Commit(Reserve(kind, key, parent, cost_us));
  }
  // Stores objects of nobody until none of `wanted` is left or memory was filled twice; says which
  // was the first to leave.
  std::vector<uint32_t> LeavingOrder(std::vector<uint32_t> wanted) {
    std::vector<uint32_t> order;
    for (uint32_t i = 0; i < 2 * kHostObjects && !wanted.empty(); ++i) {
      EXPECT_TRUE(Store(ObjectKind::kKv, Key(100'000 + i)).ok());
      for (const uint32_t id : wanted) {
        if (!InHost(Key(id))) order.push_back(id);
      }
      std::erase_if(wanted, [&](uint32_t id) { return !InHost(Key(id)); });
    }
    return order;
  }
  bool InHost(const ObjectKey& key) {
    const auto info = service_->Show(session_, key);
    return info.ok() && info->in_host;
  }
  void Use(ObjectKind kind, absl::Span<const ObjectKey> keys) {
    const auto lease = service_->Acquire(session_, layout(kind), keys, {});
    ASSERT_TRUE(lease.ok());
    ASSERT_TRUE(service_->Release(session_, {&lease->lease_id, 1}).ok());
  }
  uint32_t Held(uint32_t first, uint32_t end) {
    uint32_t held = 0;
    for (uint32_t i = first; i < end; ++i) held += InHost(Key(i)) ? 1 : 0;
    return held;
  }

  TestLoop loop_;
  std::string directory_;
  Options options_;
  std::vector<uint32_t> layouts_;
  std::vector<Tenant> tenants_;
  std::unique_ptr<CacheService> service_;
  SessionId session_ = 0;
};

TEST_F(HostPlacementTest, AChildNeverOutlivesItsParent) {
  for (const char* policy : {"default", "lru", "s3-fifo", "gdsf", "hit-density"}) {
    SCOPED_TRACE(policy);
    Start(policy);
    // Prefixes of eight, the root used last and often: by recency it would stay, by cost it would
    // leave first.
    std::vector<std::pair<ObjectKey, ObjectKey>> stored;
    uint32_t next = 0;
    for (int prefix = 0; prefix < 12; ++prefix) {
      ObjectKey parent{};
      std::vector<ObjectKey> keys;
      for (uint32_t depth = 0; depth < 8; ++depth) {
        const ObjectKey key = Key(++next);
        ASSERT_TRUE(Store(ObjectKind::kKv, key, parent, 1000 * (depth + 1)).ok());
        stored.emplace_back(key, parent);
        keys.push_back(key);
        parent = key;
        for (const auto& [child, its_parent] : stored) {
          if (!its_parent.IsZero() && InHost(child)) {
            ASSERT_TRUE(InHost(its_parent)) << "of object " << child.ToHex();
          }
        }
      }
      Use(ObjectKind::kKv, {keys.data() + 7, 1});
    }
    EXPECT_GT(Held(1, next + 1), kHostObjects / 2);
    Stop();
  }
}

// What the host tier's policy was told when objects came to stay, by their key's head.
class Recorder final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo& info) override {
    ids[info.key_head] = id;
    told[info.key_head] = info;
    policy_->Track(id, info);
  }
  void Touch(PolicyId id) override { policy_->Touch(id); }
  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    return policy_->Evict(evictable);
  }
  void Forget(PolicyId id) override { policy_->Forget(id); }

  absl::flat_hash_map<uint64_t, PolicyId> ids;
  absl::flat_hash_map<uint64_t, TrackInfo> told;

 private:
  std::unique_ptr<EvictionPolicy> policy_ = NewLruPolicy();
};

TEST_F(HostPlacementTest, ThePolicyIsToldParentAndDepth) {
  Start("lru");
  auto owned = std::make_unique<Recorder>();
  const Recorder& recorder = *owned;
  tenants_[0].placement =
      std::make_unique<Placement>(std::move(owned), KindLimits{}, kHostObjects * kMiB);
  // (depth, whether its parent is known)
  const auto told = [&](uint32_t number, uint32_t parent) {
    const TrackInfo& info = recorder.told.at(Key(number).Head64());
    const auto id = recorder.ids.find(Key(parent).Head64());
    const bool known = id != recorder.ids.end() && info.parent == id->second;
    EXPECT_TRUE(known || info.parent == kNoPolicyId) << number;
    return std::pair<int, bool>(info.depth, known);
  };
  const auto reserve = [&](uint32_t number, uint32_t parent, uint32_t position) {
    return Reserve(ObjectKind::kKv, Key(number), parent == 0 ? ObjectKey{} : Key(parent), 0,
                   position);
  };
  // A chain in one call: all are reserved before the first is committed.
  const ReserveResult chain[] = {reserve(1, 0, kUnknownPosition), reserve(2, 1, kUnknownPosition),
                                 reserve(3, 2, kUnknownPosition)};
  for (const ReserveResult& each : chain) ASSERT_TRUE(Commit(each).ok());
  EXPECT_EQ(told(1, 0), std::pair(0, false));
  EXPECT_EQ(told(2, 1), std::pair(1, true));
  EXPECT_EQ(told(3, 2), std::pair(2, true));
  // The other way round, with positions.
  const ReserveResult ninth = reserve(11, 0, 9), tenth = reserve(12, 11, 10);
  ASSERT_TRUE(Commit(tenth).ok());
  ASSERT_TRUE(Commit(ninth).ok());
  EXPECT_EQ(told(12, 11), std::pair(10, true));
  EXPECT_EQ(told(11, 0), std::pair(9, false));
  // Behind one that is not there, and never was.
  ASSERT_TRUE(Commit(reserve(21, 20, 7)).ok());
  ASSERT_TRUE(Commit(reserve(22, 20, kUnknownPosition)).ok());
  EXPECT_EQ(told(21, 20), std::pair(7, false));
  EXPECT_EQ(told(22, 20), std::pair(0, false));
  // Behind one of another tenant, by a key that only malice would know.
  auto others = std::make_unique<Recorder>();
  const Recorder& of_bob = *others;
  tenants_[1].placement =
      std::make_unique<Placement>(std::move(others), KindLimits{}, kOtherObjects * kMiB);
  const SessionId alice = std::exchange(session_, service_->OpenSession({2, 1234}, {})->session_id);
  ASSERT_TRUE(Commit(reserve(41, 1, kUnknownPosition)).ok());
  session_ = alice;
  EXPECT_EQ(of_bob.told.at(Key(41).Head64()).parent, kNoPolicyId);
  // Of a chunk of grains, positions count tokens.
  ReserveItem chunk;
  chunk.key = Key(31);
  chunk.token_count = 16;
  chunk.grain_count = 1;
  chunk.position = 512;
  ReserveResult reserved;
  loop_.RunUntil([&] {
    reserved = (*service_->Reserve(session_, layout(ObjectKind::kKv), {&chunk, 1}))[0];
    return reserved.retry_after_ms == 0;
  });
  ASSERT_TRUE(Commit(reserved).ok());
  EXPECT_EQ(told(31, 0), std::pair(2, false));
}

TEST_F(HostPlacementTest, WhatItsParentLeftBehindLeavesLikeAnyOther) {
  Start("lru");
  // 2's parent is removed, 4's is given back, 6's was never stored; 7 calls itself its parent, and
  // 8 and 9 each other.
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(1)).ok());
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(2), Key(1)).ok());
  ASSERT_TRUE(service_->Remove(session_, Key(1)).ok());
  const ReserveResult third = Reserve(ObjectKind::kKv, Key(3));
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(4), Key(3)).ok());
  ASSERT_TRUE(service_->Abort(session_, {&third.reservation_id, 1}).ok());
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(6), Key(5)).ok());
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(7), Key(7)).ok());
  const ReserveResult eighth = Reserve(ObjectKind::kKv, Key(8), Key(9));
  const ReserveResult ninth = Reserve(ObjectKind::kKv, Key(9), Key(8));
  ASSERT_TRUE(Commit(eighth).ok());
  ASSERT_TRUE(Commit(ninth).ok());
  // Of the two that say they are behind each other, the one that came first is.
  EXPECT_EQ(LeavingOrder({2, 4, 6, 7, 8, 9}), (std::vector<uint32_t>{2, 4, 6, 7, 8, 9}));
}

TEST_F(HostPlacementTest, AParentThatComesBackStaysForItsChildren) {
  Start("lru");
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(1)).ok());
  ASSERT_TRUE(Store(ObjectKind::kKv, Key(2), Key(1)).ok());
  ASSERT_TRUE(service_->Remove(session_, Key(1)).ok());
  // An engine stores the whole prompt again, and 2 is there.
  const ReserveResult first = Reserve(ObjectKind::kKv, Key(1));
  EXPECT_TRUE(absl::IsAlreadyExists(Store(ObjectKind::kKv, Key(2), Key(1))));
  EXPECT_TRUE(absl::IsAlreadyExists(Store(ObjectKind::kKv, Key(2), Key(1))));
  ASSERT_TRUE(Commit(first).ok());
  Use(ObjectKind::kKv, {Key(2)});
  EXPECT_EQ(LeavingOrder({1, 2}), (std::vector<uint32_t>{2, 1}));
}

TEST_F(HostPlacementTest, AFloorKeepsAKindThroughAFlood) {
  KindLimits limits;
  limits[1].floor = Size::Percent(25);
  Start("lru", limits);
  for (uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i)).ok());
  for (uint32_t i = 100; i < 200; ++i) ASSERT_TRUE(Store(ObjectKind::kKv, Key(i)).ok());
  EXPECT_EQ(Held(0, 10), kHostObjects / 4);
  EXPECT_GE(Held(100, 200), kHostObjects / 2);
}

TEST_F(HostPlacementTest, WithoutAFloorTheFloodTakesItAll) {
  Start("lru");
  for (uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i)).ok());
  for (uint32_t i = 100; i < 200; ++i) ASSERT_TRUE(Store(ObjectKind::kKv, Key(i)).ok());
  EXPECT_EQ(Held(0, 10), 0u);
}

TEST_F(HostPlacementTest, AKindAboveItsCeilingGivesWayFirst) {
  KindLimits limits;
  limits[0].ceiling = Size::Percent(50);
  Start("lru", limits);
  for (uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i)).ok());
  for (uint32_t i = 100; i < 200; ++i) ASSERT_TRUE(Store(ObjectKind::kKv, Key(i)).ok());
  EXPECT_EQ(Held(0, 10), 10u);  // older than all KV, but KV is above its ceiling
  for (uint32_t i = 10; i < 16; ++i) ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i)).ok());
  EXPECT_EQ(Held(0, 16), 16u);
  EXPECT_EQ(Held(100, 200), kHostObjects / 2);
}

TEST_F(HostPlacementTest, KindsCompeteByWhatTheyCost) {
  Start("gdsf");
  for (uint32_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i), {}, 900'000).ok());
  }
  for (uint32_t i = 100; i < 150; ++i) {
    ASSERT_TRUE(Store(ObjectKind::kKv, Key(i), {}, 1'000).ok());
  }
  EXPECT_EQ(Held(0, 10), 10u);
}

// Objects whose engine says nothing cost what it said of others of their layout.
TEST_F(HostPlacementTest, AnUnknownCostIsThatOfItsLayout) {
  Start("gdsf");
  for (uint32_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(Store(ObjectKind::kExpert, Key(1000 + i), {}, 900'000).ok());
    ASSERT_TRUE(service_->Remove(session_, Key(1000 + i)).ok());
  }
  for (uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(Store(ObjectKind::kExpert, Key(i)).ok());
  for (uint32_t i = 100; i < 150; ++i) {
    ASSERT_TRUE(Store(ObjectKind::kKv, Key(i), {}, 10'000).ok());
  }
  EXPECT_EQ(Held(0, 10), 10u);
}

TEST_F(HostPlacementTest, TheCurveCountsWhatWasAskedForOnce) {
  Start("lru");
  std::vector<ObjectKey> keys;
  for (uint32_t i = 0; i < 8; ++i) {
    keys.push_back(Key(i));
  }
  for (const ObjectKey& key : absl::MakeSpan(keys).first(4)) {
    ASSERT_TRUE(Store(ObjectKind::kKv, key, {}, 2'000).ok());
  }
  std::vector<ExtentInfo> extents;
  for (int round = 0; round < 10; ++round) {
    ASSERT_TRUE(service_->Lookup(session_, layout(ObjectKind::kKv), keys, extents).ok());
    Use(ObjectKind::kKv, {keys.data(), 4});
  }
  const auto curve = service_->MissRatioCurve(session_, {"host", ""});
  ASSERT_TRUE(curve.ok()) << curve.status();
  EXPECT_EQ(curve->accesses, 80u);  // those that were found wanting, too; leases not again
  EXPECT_EQ(curve->sampled, 80u);
  EXPECT_EQ(curve->capacities.size(), 1u);
  EXPECT_EQ(curve->hit_saves_us, 2'000);
  EXPECT_GT(curve->accesses_per_hour, 0);
  EXPECT_FLOAT_EQ(curve->points.front().by_accesses, 1);     // of no memory
  EXPECT_NEAR(curve->points.back().by_accesses, 0.1, 1e-6);  // the first of each
  // Experts are acquired by name: their acquisitions count.
  ASSERT_TRUE(Store(ObjectKind::kExpert, Key(50)).ok());
  Use(ObjectKind::kExpert, {Key(50)});
  Use(ObjectKind::kExpert, {Key(51)});
  EXPECT_EQ(service_->MissRatioCurve(session_, {"host", "alice"})->accesses, 82u);
  EXPECT_TRUE(absl::IsInvalidArgument(service_->MissRatioCurve(session_, {"tape", ""}).status()));
  EXPECT_TRUE(absl::IsNotFound(service_->MissRatioCurve(session_, {"nvme", ""}).status()));
  EXPECT_TRUE(
      absl::IsPermissionDenied(service_->MissRatioCurve(session_, {"host", "bob"}).status()));
}

}  // namespace
}  // namespace terrace
