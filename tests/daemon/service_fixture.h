// A CacheService with real tiers underneath (a memfd arena, O_DIRECT segment files), called as the
// transport calls it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "daemon/cache_service.h"
#include "kernels/checksum.h"
#include "tests/support/test_loop.h"

namespace terrace {

class ServiceFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/var/tmp/terrace-service-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    options_ = DefaultOptions();
    options_.server.state_dir = directory_;
    options_.host.capacity = Size::Bytes(uint64_t{64} << 20);
    options_.host.headroom = Size::Bytes(uint64_t{8} << 20);
    options_.nvme.directory = directory_ + "/nvme";
    options_.nvme.capacity = Size::Bytes(uint64_t{256} << 20);
    options_.nvme.segment_size = Size::Bytes(uint64_t{16} << 20);
    TenantOptions alice{"alice", {1}, std::nullopt, Size::Bytes(uint64_t{32} << 20)};
    TenantOptions bob{"bob", {2}, std::nullopt, Size::Bytes(uint64_t{32} << 20)};
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

}  // namespace terrace
