// What stays in host memory, through the service: objects of several kinds and of prefixes, stored
// as clients store them into an arena that is too small, with no lower tier to fall back on.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "daemon/cache_service.h"
#include "kernels/checksum.h"
#include "tests/support/test_loop.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kObjectBytes = kMiB;  // of one token
constexpr uint64_t kHostObjects = 32;

class HostPlacementTest : public ::testing::Test {
 protected:
  void Start(const std::string& policy, const KindLimits& limits = {}) {
    std::string pattern = "/var/tmp/terrace-placement-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    options_ = DefaultOptions();
    options_.server.state_dir = directory_;
    options_.host.capacity = Size::Bytes(kHostObjects * kMiB);
    options_.host.headroom = Size::Bytes(kHostObjects * kMiB);
    options_.host.policy = policy;
    options_.placement.limits = limits;
    options_.nvme.enabled = false;
    options_.tenants = {{.name = "alice", .uids = {1}}};
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

  absl::Status Store(ObjectKind kind, const ObjectKey& key, const ObjectKey& parent = {},
                     uint32_t cost_us = 0) {
    ReserveItem item;
    item.key = key;
    item.parent = parent;
    item.cost_us = cost_us;
    item.position = kUnknownPosition;
    ReserveResult reserved;
    loop_.RunUntil([&] {
      reserved = (*service_->Reserve(session_, layout(kind), {&item, 1}))[0];
      return reserved.retry_after_ms == 0;
    });
    if (!reserved.status.ok()) return reserved.status;
    CommitItem commit{reserved.reservation_id, {0, 0}, {}};
    return (*service_->Commit(session_, {&commit, 1}))[0];
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
