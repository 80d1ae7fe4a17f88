// Sizes that change while the service serves.
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tests/daemon/service_fixture.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class ResizeTest : public ServiceFixture {
 protected:
  ResizeTest() { operator_.uid = geteuid(); }

  static ObjectKey Numbered(uint32_t number) {
    ObjectKey key;
    std::memcpy(key.bytes.data(), &number, sizeof number);
    key.bytes[31] = 1;
    return key;
  }

  SessionId Operator() {
    ClientHello hello;
    hello.tenant = "alice";
    return service_->OpenSession(operator_, hello)->session_id;
  }

  // As the daemon's loop does, until `done`.
  bool TickUntil(absl::FunctionRef<bool()> done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < deadline) {
      service_->Tick();
      if (loop_.RunUntil(done, std::chrono::seconds(0))) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  ResizeReply Ask(SessionId session, const std::string& tenant = "alice") {
    const auto reply = service_->Resize(session, {"host", tenant, 0});
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.value_or(ResizeReply{});
  }

  // One try; false when there was no room.
  bool TryStore(size_t tenant, SessionId session, const ObjectKey& key) {
    constexpr uint32_t kTokens = 256;
    const uint32_t layout = *service_->RegisterLayout(session, layout_, std::nullopt);
    ReserveItem item;
    item.key = key;
    item.token_count = kTokens;
    const ReserveResult result = (*service_->Reserve(session, layout, {&item, 1}))[0];
    if (!result.status.ok()) return false;
    CommitItem commit;
    commit.reservation_id = result.reservation_id;
    uint8_t* payload = tenants_[tenant].host->At(Extent{result.offset});
    for (const PartSpan& part : layout_.Parts(kTokens, 0)) {
      std::memset(payload + part.offset, 3, part.bytes);
      commit.part_crcs.push_back(kernels::Crc32c(payload + part.offset, part.bytes));
    }
    return (*service_->Commit(session, {&commit, 1}))[0].ok();
  }

  bool Holds(const AcquireResult& leased, uint8_t tag) {
    const uint8_t* payload = Memory(0, leased.offset);
    for (const PartSpan& part : layout_.Parts(leased.token_count, 0)) {
      for (uint64_t i = 0; i < part.bytes; ++i) {
        if (payload[part.offset + i] != tag) return false;
      }
    }
    return true;
  }

  PeerCredentials operator_;
};

TEST_F(ResizeTest, AShrinkKeepsWhatIsLeasedWhereItIsAndMovesWhatIsLeft) {
  const SessionId session = Connect(1), admin = Operator();
  for (uint32_t i = 0; i < 40; ++i) Store(session, Numbered(i), static_cast<uint8_t>(i), 256);
  ASSERT_GT(tenants_[0].host->used_bytes(), 28 * kMiB);
  // The last stored lie highest.
  const AcquireReply held = AcquireKey(session, Numbered(39));
  const uint64_t offset = held.results[0].offset;
  ASSERT_GT(offset, 16 * kMiB);
  const auto begun = service_->Resize(admin, {"host", "alice", 8 * kMiB});
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_EQ(begun->target_bytes, 8 * kMiB);
  EXPECT_FALSE(begun->done);
  EXPECT_GT(begun->current_bytes, 28 * kMiB);

  const uint64_t payload = held.results[0].payload_bytes;
  ASSERT_TRUE(TickUntil([&] { return Ask(admin).held_by_leases_bytes == payload; }));
  EXPECT_FALSE(Ask(admin).done);
  EXPECT_TRUE(Holds(held.results[0], 39));
  const auto status = service_->Status(session);
  EXPECT_NE(status->tiers[0].detail.find("shrinking: "), std::string::npos);
  EXPECT_NE(status->tiers[0].detail.find("held by leases"), std::string::npos);

  ASSERT_TRUE(service_->Release(session, {&held.lease_id, 1}).ok());
  ASSERT_TRUE(TickUntil([&] { return Ask(admin).done; }));
  EXPECT_EQ(Ask(admin).current_bytes, 8 * kMiB);
  EXPECT_GT(Counter(session, "moved_objects"), 0u);
  EXPECT_EQ(Counter(session, "corrupt_objects"), 0u);
  uint32_t kept = 0;
  for (uint32_t i = 0; i < 40; ++i) {
    const auto shown = service_->Show(session, Numbered(i));
    if (!shown.ok() || !shown->in_host) continue;
    ++kept;
    const AcquireReply reply = AcquireKey(session, Numbered(i));
    ASSERT_TRUE(reply.results[0].status.ok());
    EXPECT_LT(reply.results[0].offset, 8 * kMiB);
    EXPECT_TRUE(Holds(reply.results[0], static_cast<uint8_t>(i))) << i;
    ASSERT_TRUE(service_->Release(session, {&reply.lease_id, 1}).ok());
  }
  EXPECT_GE(kept, 8u);  // of 0.75 MiB each

  ASSERT_TRUE(service_->Resize(admin, {"host", "alice", 24 * kMiB}).ok());
  for (uint32_t i = 40; i < 60; ++i) Store(session, Numbered(i), static_cast<uint8_t>(i), 256);
  EXPECT_GT(tenants_[0].host->used_bytes(), 16 * kMiB);
}

TEST_F(ResizeTest, WhatIsMovedMayBeRemovedOrLeasedMeanwhile) {
  const SessionId session = Connect(1), admin = Operator();
  for (uint32_t round = 0; round < 6; ++round) {
    ASSERT_TRUE(service_->Resize(admin, {"host", "alice", 32 * kMiB}).ok());
    for (uint32_t i = 0; i < 36; ++i) {
      Store(session, Numbered(round * 100 + i), static_cast<uint8_t>(i), 256);
    }
    ASSERT_TRUE(service_->Resize(admin, {"host", "alice", 12 * kMiB}).ok());
    uint32_t next = 0;
    ASSERT_TRUE(TickUntil([&] {
      const ObjectKey key = Numbered(round * 100 + next % 36);
      if (next % 5 == 0) service_->Remove(session, key).IgnoreError();
      const uint32_t layout = *service_->RegisterLayout(session, layout_, std::nullopt);
      const auto reply = service_->Acquire(session, layout, {&key, 1}, AcquireOptions{});
      EXPECT_TRUE(reply.ok());
      const AcquireResult& result = reply->results[0];
      if (result.status.ok() && result.source == TierId::kHost) {
        EXPECT_TRUE(Holds(result, static_cast<uint8_t>(next % 36)));
      }
      if (reply->lease_id != 0) service_->Release(session, {&reply->lease_id, 1}).IgnoreError();
      ++next;
      return Ask(admin).done;
    }));
  }
  EXPECT_EQ(Counter(session, "corrupt_objects"), 0u);
}

TEST_F(ResizeTest, ADamagedObjectIsNotMovedButDropped) {
  const SessionId session = Connect(1), admin = Operator();
  for (uint32_t i = 0; i < 40; ++i) Store(session, Numbered(i), static_cast<uint8_t>(i), 256);
  WaitUntilDurable(session);
  const AcquireReply leased = AcquireKey(session, Numbered(39));
  Memory(session, leased.results[0].offset)[5] ^= 1;
  ASSERT_TRUE(service_->Release(session, {&leased.lease_id, 1}).ok());
  ASSERT_TRUE(service_->Resize(admin, {"host", "alice", 8 * kMiB}).ok());
  ASSERT_TRUE(TickUntil([&] { return Ask(admin).done; }));
  EXPECT_EQ(Counter(session, "corrupt_objects"), 1u);
  EXPECT_TRUE(absl::IsNotFound(service_->Show(session, Numbered(39)).status()));
}

TEST_F(ResizeTest, OnlyTheOperatorResizesAndOnlyToWhatMakesSense) {
  // An operator acts for a tenant that it names, never for one unawares.
  EXPECT_TRUE(absl::IsPermissionDenied(service_->OpenSession(operator_, {}).status()));
  const SessionId alice = Connect(1), admin = Operator();
  EXPECT_TRUE(absl::IsPermissionDenied(service_->Resize(alice, {"host", "", 16 * kMiB}).status()));
  EXPECT_TRUE(absl::IsNotFound(service_->Resize(admin, {"tape", "", 16 * kMiB}).status()));
  EXPECT_TRUE(absl::IsNotFound(service_->Resize(admin, {"host", "carol", 16 * kMiB}).status()));
  for (const ResizeRequest& bad :
       {ResizeRequest{"host", "", 1}, ResizeRequest{"host", "", 1, 101},
        ResizeRequest{"host", "", uint64_t{1} << 60},
        ResizeRequest{"host", "alice", 4 * kMiB - 4096}, ResizeRequest{"host", "alice", 65 * kMiB},
        ResizeRequest{"nvme", "", 31 * kMiB}, ResizeRequest{"nvme", "", uint64_t{1} << 60},
        ResizeRequest{"nvme", "bob", 257 * kMiB}}) {
    const auto reply = service_->Resize(admin, bad);
    EXPECT_TRUE(absl::IsInvalidArgument(reply.status()))
        << bad.tier << " " << bad.tenant << " " << bad.bytes << " " << reply.status();
  }
  EXPECT_EQ(Ask(admin, "").target_bytes, 64 * kMiB);
  EXPECT_EQ(service_->Resize(admin, {"nvme", "", 0})->target_bytes, 256 * kMiB);
  EXPECT_EQ(service_->Resize(admin, {"host", "alice", 0, 25})->target_bytes, 16 * kMiB);
  EXPECT_EQ(service_->Resize(admin, {"nvme", "", 128 * kMiB})->target_bytes, 128 * kMiB);
}

TEST_F(ResizeTest, AReloadAppliesSizesAndNamesTheRest) {
  const SessionId admin = Operator();
  Options configured = options_;
  configured.tenants[0].host_capacity = Size::Bytes(12 * kMiB);
  configured.nvme.capacity = Size::Bytes(192 * kMiB);
  configured.tenants[1].nvme_capacity = Size::Percent(50);
  configured.limits.max_sessions = 3;
  ASSERT_TRUE(service_->Reload(configured).ok());
  EXPECT_EQ(Ask(admin, "alice").target_bytes, 12 * kMiB);
  EXPECT_EQ(Ask(admin, "bob").target_bytes, 32 * kMiB);
  EXPECT_EQ(service_->Resize(admin, {"nvme", "", 0})->target_bytes, 192 * kMiB);
  EXPECT_EQ(service_->Resize(admin, {"nvme", "bob", 0})->target_bytes, 96 * kMiB);
  configured.tenants[0].host_capacity = Size::Bytes(80 * kMiB);  // more than host.capacity
  configured.nvme.capacity = Size::Bytes(128 * kMiB);
  EXPECT_TRUE(absl::IsInvalidArgument(service_->Reload(configured)));
  EXPECT_EQ(service_->Resize(admin, {"nvme", "", 0})->target_bytes, 192 * kMiB);
}

TEST_F(ResizeTest, ATenantOverItsNvmePartLosesItsOwnRecordsOnly) {
  const SessionId alice = Connect(1), bob = Connect(2), admin = Operator();
  options_.nvme.admission = "always";
  Store(alice, Numbered(1000), 7, 256);
  WaitUntilDurable(alice);
  ASSERT_TRUE(service_->Resize(admin, {"nvme", "alice", 16 * kMiB}).ok());
  for (uint32_t i = 0; i < 40; ++i) {
    Store(alice, Numbered(i), static_cast<uint8_t>(i), 256);
    WaitUntilDurable(alice);
    EXPECT_LE(tenants_[0].nvme_bytes, 16 * kMiB);
  }
  EXPECT_GT(tenants_[0].nvme_bytes, 14 * kMiB);
  EXPECT_GT(Counter(alice, "dropped_quota"), 10u);
  EXPECT_EQ(tenants_[1].nvme_bytes, 0u);
  (void)bob;
  // A smaller part is reached at once, and lasts.
  ASSERT_TRUE(service_->Resize(admin, {"nvme", "alice", 8 * kMiB}).ok());
  ASSERT_TRUE(TickUntil([&] { return tenants_[0].nvme_bytes <= 8 * kMiB; }));
  EXPECT_TRUE(service_->Resize(admin, {"nvme", "alice", 0})->done);
}

TEST_F(ResizeTest, FairSharingLendsAndGivesBackBeforeTheOwnerEvicts) {
  Stop();
  options_.host.sharing = "fair";
  options_.host.headroom = Size::Bytes(4 * kMiB);
  Start();
  const SessionId alice = Connect(1), bob = Connect(2);
  const auto within = [&] {
    uint64_t there = 0;
    for (const Tenant& tenant : tenants_) {
      there += tenant.host->capacity_bytes() + tenant.host->excess_bytes();
    }
    return there <= 64 * kMiB;
  };
  // Alice has half, and uses more while Bob leaves his half.
  uint32_t stored = 0;
  ASSERT_TRUE(TickUntil([&] {
    EXPECT_TRUE(within());
    if (TryStore(0, alice, Numbered(stored))) ++stored;
    return tenants_[0].host->used_bytes() > 44 * kMiB;
  })) << stored;
  EXPECT_LT(tenants_[1].host->capacity_bytes(), 32 * kMiB);
  // Bob gets all of his half as he needs it, and loses nothing meanwhile.
  uint32_t own = 0;
  ASSERT_TRUE(TickUntil([&] {
    EXPECT_TRUE(within());
    if (TryStore(1, bob, Numbered(1000 + own))) ++own;
    return own == 36;  // 27 MiB
  })) << own;
  EXPECT_EQ(tenants_[1].host_objects, 36u);
  EXPECT_LE(tenants_[0].host->used_bytes(), 36 * kMiB);
}

}  // namespace
}  // namespace terrace
