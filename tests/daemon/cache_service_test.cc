#include "daemon/cache_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

#include "tests/daemon/service_fixture.h"

namespace terrace {
namespace {

class CacheServiceTest : public ServiceFixture {};

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
