// The service with real tiers underneath (a memfd arena, O_DIRECT segment files), called as the
// transport calls it.
#include "daemon/cache_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <vector>

#include "kernels/checksum.h"
#include "tests/support/test_loop.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class CacheServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/var/tmp/terrace-service-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    options_ = DefaultOptions();
    options_.server.state_dir = directory_;
    options_.host.capacity = Size::Bytes(32 * kMiB);
    options_.host.headroom = Size::Bytes(8 * kMiB);
    options_.nvme.directory = directory_ + "/nvme";
    options_.nvme.capacity = Size::Bytes(256 * kMiB);
    options_.nvme.segment_size = Size::Bytes(16 * kMiB);
    TenantOptions alice{"alice", {1}, std::nullopt, Size::Bytes(32 * kMiB)};
    TenantOptions bob{"bob", {2}, std::nullopt, Size::Bytes(32 * kMiB)};
    options_.tenants = {alice, bob};
    layout_.fingerprint = Fingerprint{1};
    layout_.part_bytes_per_token = {1000, 2000};
    Start();
  }

  void TearDown() override {
    Stop();
    std::filesystem::remove_all(directory_);
  }

  void Start() {
    NvmeOptions nvme;
    nvme.directory = options_.nvme.directory;
    nvme.capacity_bytes = options_.nvme.capacity.bytes;
    nvme.segment_bytes = options_.nvme.segment_size.bytes;
    auto opened = NvmeTier::Open(nvme, loop_.post());
    ASSERT_TRUE(opened.ok()) << opened.status();
    nvme_ = *std::move(opened);
    auto tenants = BuildTenants(options_, loop_.post());
    ASSERT_TRUE(tenants.ok()) << tenants.status();
    tenants_ = *std::move(tenants);
    service_ = std::make_unique<CacheService>(options_, tenants_, nvme_.get(), loop_.post());
    const absl::Status recovered = service_->Recover();
    ASSERT_TRUE(recovered.ok()) << recovered;
  }

  void Stop() {
    nvme_.reset();
    service_.reset();
    tenants_.clear();
  }

  SessionId Connect(uint32_t uid) {
    ClientHello hello;
    auto welcome = service_->OpenSession({uid, 1234}, hello);
    EXPECT_TRUE(welcome.ok()) << welcome.status();
    return welcome->session_id;
  }

  static ObjectKey Key(uint8_t tag) {
    ObjectKey key;
    key.bytes.fill(tag);
    return key;
  }

  // Reserves, waiting while the arena grows.
  ReserveResult ReserveKey(SessionId session, const ObjectKey& key, uint32_t tokens = 16) {
    const uint32_t layout = *service_->RegisterLayout(session, layout_, std::nullopt);
    ReserveItem item;
    item.key = key;
    item.token_count = tokens;
    ReserveResult result;
    loop_.RunUntil([&] {
      result = (*service_->Reserve(session, layout, {&item, 1}))[0];
      return result.retry_after_ms == 0;
    });
    return result;
  }

  // Stores an object whose bytes are all `tag`.
  void Store(SessionId session, const ObjectKey& key, uint8_t tag, uint32_t tokens = 16) {
    const ReserveResult reserved = ReserveKey(session, key, tokens);
    ASSERT_TRUE(reserved.status.ok()) << reserved.status;
    uint8_t* payload = Memory(session, reserved.offset);
    CommitItem commit;
    commit.reservation_id = reserved.reservation_id;
    for (const PartSpan& part : layout_.Parts(tokens, 0)) {
      std::memset(payload + part.offset, tag, part.bytes);
      commit.part_crcs.push_back(kernels::Crc32c(payload + part.offset, part.bytes));
    }
    const auto committed = service_->Commit(session, {&commit, 1});
    ASSERT_TRUE(committed.ok() && (*committed)[0].ok());
  }

  uint8_t* Memory(SessionId, uint64_t offset) { return tenants_[0].host->At(Extent{offset}); }

  // Acquires, waiting while the arena grows.
  AcquireReply AcquireKey(SessionId session, const ObjectKey& key) {
    const uint32_t layout = *service_->RegisterLayout(session, layout_, std::nullopt);
    AcquireReply result;
    loop_.RunUntil([&] {
      auto reply = service_->Acquire(session, layout, {&key, 1}, AcquireOptions{});
      EXPECT_TRUE(reply.ok()) << reply.status();
      result = *std::move(reply);
      return result.results[0].retry_after_ms == 0;
    });
    return result;
  }

  void WaitUntilDurable(SessionId session) {
    ASSERT_TRUE(loop_.RunUntil([&] { return service_->Flush(session)->pending_objects == 0; }));
  }

  uint64_t Counter(SessionId session, const std::string& name) {
    const auto status = service_->Status(session);
    for (const auto& [counter, value] : status->counters) {
      if (counter == name) return value;
    }
    ADD_FAILURE() << "no counter " << name;
    return 0;
  }

  TestLoop loop_;
  std::string directory_;
  Options options_;
  ObjectLayout layout_;
  std::unique_ptr<NvmeTier> nvme_;
  std::vector<Tenant> tenants_;
  std::unique_ptr<CacheService> service_;
};

TEST_F(CacheServiceTest, UnknownUidAndTenantAreRefused) {
  EXPECT_EQ(service_->OpenSession({99, 1}, {}).status().code(),
            absl::StatusCode::kPermissionDenied);
  ClientHello hello;
  hello.tenant = "bob";
  EXPECT_EQ(service_->OpenSession({1, 1}, hello).status().code(),
            absl::StatusCode::kPermissionDenied);
  hello.tenant.clear();
  hello.protocol_major = kProtocolMajor + 1;
  EXPECT_EQ(service_->OpenSession({1, 1}, hello).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(CacheServiceTest, AnObjectIsInvisibleUntilCommittedAndOneStoreWins) {
  const SessionId first = Connect(1), second = Connect(1);
  const ReserveResult reserved = ReserveKey(first, Key(1));
  ASSERT_TRUE(reserved.status.ok()) << reserved.status;
  EXPECT_EQ(service_->Show(first, Key(1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::IsAlreadyExists(ReserveKey(second, Key(1)).status));
  // Half of the parts is nothing.
  CommitItem half{reserved.reservation_id, {1}, {}};
  EXPECT_TRUE(absl::IsInvalidArgument((*service_->Commit(first, {&half, 1}))[0]));
  EXPECT_EQ(service_->Show(first, Key(1)).status().code(), absl::StatusCode::kNotFound);
  // The winner dies: the key is free again.
  service_->CloseSession(first);
  Store(second, Key(1), 7);
  EXPECT_TRUE(service_->Show(second, Key(1)).ok());
}

TEST_F(CacheServiceTest, TenantsDoNotSeeEachOther) {
  const SessionId alice = Connect(1), bob = Connect(2);
  Store(alice, Key(1), 7);
  EXPECT_TRUE(service_->Show(alice, Key(1)).ok());
  EXPECT_TRUE(absl::IsNotFound(service_->Show(bob, Key(1)).status()));
  EXPECT_TRUE(absl::IsNotFound(service_->Remove(bob, Key(1))));
  EXPECT_TRUE(absl::IsNotFound(AcquireKey(bob, Key(1)).results[0].status));
  EXPECT_TRUE(service_->List(bob, 0, 10)->objects.empty());
  EXPECT_NE(tenants_[0].salt, tenants_[1].salt);
}

TEST_F(CacheServiceTest, LeasedObjectsStayAndOthersAreEvicted) {
  const SessionId session = Connect(1);
  Store(session, Key(1), 1, 256);
  const AcquireReply lease = AcquireKey(session, Key(1));
  ASSERT_TRUE(lease.results[0].status.ok());
  // 100 objects of 0.75 MiB into 32 MiB.
  for (uint8_t tag = 2; tag < 102; ++tag) {
    Store(session, Key(tag), tag, 256);
    WaitUntilDurable(session);
  }
  const uint8_t* payload = Memory(session, lease.results[0].offset);
  EXPECT_EQ(payload[0], 1);
  EXPECT_EQ(payload[layout_.Parts(256, 0)[2].offset], 1);
  EXPECT_GT(Counter(session, "evicted_host"), 0u);
  EXPECT_EQ(Counter(session, "evicted_unwritten"), 0u);
  EXPECT_EQ(service_->Status(session)->objects, 101u);  // the evicted ones are on NVMe
}

TEST_F(CacheServiceTest, APromotionReportsPartsAndJoins) {
  const SessionId session = Connect(1);
  Store(session, Key(1), 9, 256);
  WaitUntilDurable(session);
  Stop();
  Start();
  const SessionId first = Connect(1), second = Connect(1);
  const AcquireReply one = AcquireKey(first, Key(1));
  const AcquireReply two = AcquireKey(second, Key(1));
  ASSERT_TRUE(one.results[0].status.ok()) << one.results[0].status;
  EXPECT_EQ(one.results[0].source, TierId::kNvme);
  EXPECT_EQ(one.results[0].offset, two.results[0].offset);
  ASSERT_TRUE(loop_.RunUntil([&] { return Counter(first, "promoted_bytes") > 0; }));
  EXPECT_EQ(Memory(first, one.results[0].offset)[0], 9);
  EXPECT_EQ(service_->Show(first, Key(1))->lease_count, 2u);
  service_->CloseSession(second);
  EXPECT_EQ(service_->Show(first, Key(1))->lease_count, 1u);
}

TEST_F(CacheServiceTest, ALeaseEndsWithItsTimeAndARemovedObjectOutlivesItsLease) {
  const SessionId session = Connect(1);
  Store(session, Key(1), 5);
  AcquireOptions brief;
  brief.ttl_ms = 1;
  const uint32_t layout = *service_->RegisterLayout(session, layout_, std::nullopt);
  const ObjectKey key = Key(1);
  const auto lease = service_->Acquire(session, layout, {&key, 1}, brief);
  ASSERT_TRUE(lease.ok());
  EXPECT_TRUE(service_->Remove(session, key).ok());
  EXPECT_TRUE(absl::IsNotFound(service_->Show(session, key).status()));
  EXPECT_EQ(Memory(session, lease->results[0].offset)[0], 5);
  while (MonotonicUs() <= lease->deadline_us) usleep(500);
  service_->Tick();
  EXPECT_EQ(Counter(session, "leases_expired"), 1u);
  EXPECT_TRUE(absl::IsNotFound(service_->Renew(session, lease->lease_id, 10).status()));
  WaitUntilDurable(session);
  EXPECT_EQ(tenants_[0].host->used_bytes(), 0u);
}

TEST_F(CacheServiceTest, LimitsAnswerResourceExhausted) {
  options_.limits.max_reservations_per_session = 2;
  options_.limits.max_leases_per_session = 1;
  options_.limits.max_keys_per_call = 4;
  const SessionId session = Connect(1);
  EXPECT_TRUE(ReserveKey(session, Key(1)).status.ok());
  EXPECT_TRUE(ReserveKey(session, Key(2)).status.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(ReserveKey(session, Key(3)).status));
  const SessionId other = Connect(1);
  Store(other, Key(4), 4);
  EXPECT_NE(AcquireKey(other, Key(4)).lease_id, 0u);
  const ObjectKey key = Key(4);
  const uint32_t layout = *service_->RegisterLayout(other, layout_, std::nullopt);
  EXPECT_TRUE(absl::IsResourceExhausted(
      service_->Acquire(other, layout, {&key, 1}, AcquireOptions{}).status()));
  const std::vector<ObjectKey> many(5, Key(9));
  std::vector<ExtentInfo> extents;
  EXPECT_TRUE(absl::IsResourceExhausted(service_->Lookup(other, layout, many, extents)));
  EXPECT_GE(Counter(other, "refused_limits"), 3u);
}

TEST_F(CacheServiceTest, AnObjectLargerThanTheTierIsRefusedByName) {
  layout_.part_bytes_per_token = {33 << 20};
  const SessionId session = Connect(1);
  const ReserveResult result = ReserveKey(session, Key(1), 1);
  EXPECT_TRUE(absl::IsInvalidArgument(result.status)) << result.status;
}

TEST_F(CacheServiceTest, VerifyFindsBytesThatAClientSpoiled) {
  const SessionId session = Connect(1);
  Store(session, Key(1), 5);
  Store(session, Key(2), 6);
  ASSERT_TRUE(loop_.RunUntil([&] { return service_->Flush(session)->pending_objects == 0; }));
  const AcquireReply lease = AcquireKey(session, Key(2));
  Memory(session, lease.results[0].offset)[100] ^= 1;
  uint64_t cursor = 0, checked = 0, corrupt = 0;
  ASSERT_TRUE(loop_.RunUntil([&] {
    const auto step = service_->Verify(session, cursor);
    EXPECT_TRUE(step.ok());
    checked += step->checked;
    corrupt += step->corrupt;
    cursor = step->next_cursor;
    if (cursor != 0 && step->checked == 0) loop_.post()([] {});  // keep the pump turning
    return cursor == 0;
  }));
  EXPECT_EQ(checked, 2u);
  EXPECT_EQ(corrupt, 1u);
  EXPECT_TRUE(absl::IsNotFound(service_->Show(session, Key(2)).status()));
  EXPECT_TRUE(service_->Show(session, Key(1)).ok());
}

}  // namespace
}  // namespace terrace
