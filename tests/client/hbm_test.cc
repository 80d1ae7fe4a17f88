// The HBM tier of a real daemon, on a device of host memory: what leases of it see, what moves.
#include <gmock/gmock.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "kernels/shared_memory.h"
#include "tests/support/daemon_process.h"
#include "transport/connection.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kObjectBytes = kMiB - 4096;
constexpr AcquireOptions kOnDevice{0, 0, LeaseMemory::kDevice};

DaemonSettings Settings(uint64_t hbm, uint64_t host, uint64_t nvme, const std::string& more = {}) {
  DaemonSettings settings;
  settings.host_bytes = host * kMiB;
  settings.nvme_bytes = nvme * kMiB;
  settings.extra = nvme > 0 ? "admission = \"always\"\n" : "";
  settings.extra += "[hbm]\ncapacity = " + std::to_string(hbm * kMiB) + "\n" + more;
  return settings;
}

std::vector<uint8_t> BytesOf(uint32_t number) {
  std::vector<uint8_t> bytes(kObjectBytes);
  uint64_t word = number;
  for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    word = word * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(bytes.data() + at, &word, 8);
  }
  return bytes;
}

class HbmTest : public testing::Test {
 protected:
  void Begin(const DaemonSettings& settings) {
    daemon_.emplace(settings);
    client_ = daemon_->Connect();
    ASSERT_NE(client_, nullptr);
  }
  ObjectKey Key(uint32_t number) const {
    return client_->KeyFor("object " + std::to_string(number));
  }
  void Put(uint32_t number) {
    const absl::Status put = client_->Put(Key(number), BytesOf(number));
    ASSERT_TRUE(put.ok()) << put;
  }
  void PutAll(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) Put(i);
    ASSERT_TRUE(client_->Flush(120000).ok());
  }
  // Whether the lease gives what was put.
  static absl::Status Check(Lease& lease, uint32_t number) {
    if (absl::Status s = lease.WaitAll(30000); !s.ok()) return s;
    const auto bytes = lease.RawPart(0, 1);
    if (!bytes.ok()) return bytes.status();
    const auto expected = BytesOf(number);
    if (*bytes != absl::MakeConstSpan(expected)) return absl::InternalError("wrong bytes");
    return absl::OkStatus();
  }
  absl::Status Read(Client& client, uint32_t number, const AcquireOptions& options) const {
    auto lease = client.Get(Key(number), options);
    return lease.ok() ? Check(*lease, number) : lease.status();
  }
  ObjectInfo Info(uint32_t number) { return *client_->Show(Key(number)); }
  uint64_t Counter(const std::string& name) {
    const StatusReply status = *client_->Status();
    for (const auto& [counter, value] : status.counters) {
      if (counter == name) return value;
    }
    ADD_FAILURE() << "no counter " << name;
    return 0;
  }
  TierStatus Hbm() { return client_->Status()->tiers.front(); }

  std::optional<DaemonProcess> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_F(HbmTest, ALeaseOnTheDeviceMovesTheObjectThereAndReadsItInPlace) {
  Begin(Settings(8, 32, 128));
  PutAll(2);
  EXPECT_TRUE(Info(0).in_host && !Info(0).in_hbm);
  const absl::Status first = Read(*client_, 0, kOnDevice);
  ASSERT_TRUE(first.ok()) << first;
  // Durable, leased by nobody: the copy below has gone.
  EXPECT_TRUE(Info(0).in_hbm && !Info(0).in_host && Info(0).in_nvme);
  EXPECT_EQ(Hbm().name, "hbm");
  EXPECT_EQ(Hbm().objects, 1u);
  ASSERT_TRUE(Read(*client_, 0, kOnDevice).ok());
  EXPECT_EQ(Counter("acquired_hbm"), 1u);
  EXPECT_EQ(Counter("raised_objects"), 1u);
  // A lease of host memory gets a copy, for as long as it lasts.
  {
    auto lease = client_->Get(Key(0));
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(Check(*lease, 0).ok());
    EXPECT_TRUE(Info(0).in_hbm && Info(0).in_host);
  }
  EXPECT_TRUE(Eventually([&] { return !Info(0).in_host; }));
  EXPECT_TRUE(Info(0).in_hbm);
}

TEST_F(HbmTest, WithoutATierALeaseOnTheDeviceIsRefused) {
  Begin(Settings(0, 32, 0));
  Put(0);
  const absl::Status refused = Read(*client_, 0, kOnDevice);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("hbm.capacity"));
  EXPECT_TRUE(Read(*client_, 0, {}).ok());
}

TEST_F(HbmTest, WhatIsOnNvmeOnlyComesUpByWayOfHostMemory) {
  Begin(Settings(8, 32, 128));
  PutAll(4);
  client_.reset();
  daemon_->Restart();
  client_ = daemon_->Connect();
  ASSERT_FALSE(Info(3).in_host);
  const absl::Status read = Read(*client_, 3, kOnDevice);
  ASSERT_TRUE(read.ok()) << read;
  EXPECT_TRUE(Info(3).in_hbm && !Info(3).in_host);
}

TEST_F(HbmTest, MoreThanFitsMovesBetweenAllTiersAndNoByteIsWrong) {
  // 48 objects over 8 in HBM, about 16 in host memory, the rest on NVMe.
  Begin(Settings(8, 16, 256));
  PutAll(48);
  const auto load = [&](uint64_t seed, absl::Status& result) {
    const auto client = daemon_->Connect();
    std::mt19937_64 random(seed);
    for (int i = 0; i < 400 && result.ok(); ++i) {
      const auto number = static_cast<uint32_t>(std::min(random() % 48, random() % 48));
      const absl::Status read =
          Read(*client, number, random() % 4 == 0 ? AcquireOptions{} : kOnDevice);
      if (!absl::IsResourceExhausted(read)) result.Update(read);
    }
  };
  absl::Status one, two;
  std::thread other([&] { load(1, one); });
  load(2, two);
  other.join();
  EXPECT_TRUE(one.ok()) << one;
  EXPECT_TRUE(two.ok()) << two;
  EXPECT_GT(Counter("lowered_objects"), 20u);
  EXPECT_GT(Counter("acquired_hbm"), 20u);
  EXPECT_EQ(Counter("corrupt_objects"), 0u);
  EXPECT_LE(Hbm().used_bytes, Hbm().capacity_bytes);
  const auto verified = client_->Verify();
  ASSERT_TRUE(verified.ok());
  EXPECT_EQ(verified->checked, 48u);
  EXPECT_EQ(verified->corrupt, 0u);
}

TEST_F(HbmTest, WithoutNvmeMemoryIsWhatHostAndDeviceHoldTogether) {
  Begin(Settings(8, 32, 0));
  for (uint32_t i = 0; i < 24; ++i) Put(i);
  for (int round = 0; round < 2; ++round) {
    for (uint32_t i = 0; i < 24; ++i) {
      const absl::Status read = Read(*client_, i, kOnDevice);
      ASSERT_TRUE(read.ok()) << i << ": " << read;
    }
  }
  uint32_t twice = 0;
  for (uint32_t i = 0; i < 24; ++i) {
    EXPECT_TRUE(Info(i).in_hbm || Info(i).in_host);
    twice += Info(i).in_hbm && Info(i).in_host;
  }
  EXPECT_EQ(twice, 0u);
}

TEST_F(HbmTest, WhatIsLeasedStaysAndAClientsEndFreesIt) {
  Begin(Settings(8, 32, 0));
  for (uint32_t i = 0; i < 10; ++i) Put(i);
  auto other = daemon_->Connect();
  std::vector<Lease> leases;
  for (uint32_t i = 0; i < 8; ++i) {
    auto lease = other->Get(Key(i), kOnDevice);
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_TRUE(Check(*lease, i).ok());
    leases.push_back(*std::move(lease));
  }
  const absl::Status full = Read(*client_, 8, kOnDevice);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  for (uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(Check(leases[i], i).ok());
  other->Close();
  EXPECT_TRUE(Eventually([&] { return Read(*client_, 8, kOnDevice).ok(); }));
  EXPECT_TRUE(Read(*client_, 9, kOnDevice).ok());
}

TEST_F(HbmTest, RemovedWhileItIsLeasedIsReadToTheEnd) {
  Begin(Settings(8, 32, 0));
  Put(0);
  auto lease = client_->Get(Key(0), kOnDevice);
  ASSERT_TRUE(lease.ok() && Check(*lease, 0).ok());
  ASSERT_TRUE(client_->Remove(Key(0)).ok());
  EXPECT_TRUE(Check(*lease, 0).ok());
  EXPECT_TRUE(lease->Release().ok());
  EXPECT_TRUE(Eventually([&] { return Hbm().used_bytes == 0; }));
  EXPECT_TRUE(absl::IsNotFound(client_->Show(Key(0)).status()));
}

TEST_F(HbmTest, BytesThatAreNotWhatWasStoredDoNotGetToTheDevice) {
  Begin(Settings(8, 32, 0));
  Put(0);
  {
    auto lease = client_->Get(Key(0));
    ASSERT_TRUE(lease.ok() && lease->WaitAll().ok());
    // A client of the tenant that writes where it should not.
    const_cast<uint8_t&>(lease->RawPart(0, 1)->front()) ^= 1;
  }
  const absl::Status read = Read(*client_, 0, kOnDevice);
  EXPECT_TRUE(absl::IsDataLoss(read)) << read;
  EXPECT_EQ(Counter("corrupt_objects"), 1u);
  EXPECT_TRUE(absl::IsNotFound(Read(*client_, 0, {})));
  EXPECT_TRUE(Eventually([&] { return Hbm().used_bytes == 0; }));
}

TEST_F(HbmTest, AClientCannotWriteToTheDevice) {
  Begin(Settings(8, 32, 0));
  ConnectionOptions options;
  options.socket_path = daemon_->socket_path();
  const auto connection = Connection::Open(std::move(options));
  ASSERT_TRUE(connection.ok());
  const Welcome welcome = (*connection)->TakeWelcome();
  ASSERT_EQ(welcome.device_capacity_bytes, 8 * kMiB);
  EXPECT_TRUE(kernels::SharedMemory::Attach(dup(welcome.device_fd), kMiB, false).ok());
  EXPECT_FALSE(kernels::SharedMemory::Attach(dup(welcome.device_fd), kMiB, true).ok());
  const absl::Status resized = (*connection)->Resize({"hbm", "", 16 * kMiB}).status();
  EXPECT_THAT(std::string(resized.message()), HasSubstr("restart"));
  for (int fd : {welcome.device_fd, welcome.segment_fd, welcome.board_fd, welcome.ready_event_fd}) {
    close(fd);
  }
}

TEST_F(HbmTest, AnnouncedObjectsAreThereBeforeTheyAreAskedFor) {
  Begin(Settings(8, 64, 128));
  PutAll(40);
  // Until it is known that hints come true nothing moves on their word.
  uint64_t request = 0;
  const auto announce = [&](uint32_t number, uint64_t eta_us) {
    const ObjectKey key = Key(number);
    ExpectedRead read;
    read.request_id = ++request;
    read.eta_us = eta_us;
    read.keys = {&key, 1};
    ASSERT_TRUE(client_->Hint({&read, 1}).ok());
  };
  for (uint32_t i = 0; i < 40; ++i) {
    announce(i, 1000);
    ASSERT_TRUE(Read(*client_, i, kOnDevice).ok());
  }
  std::this_thread::sleep_for(std::chrono::seconds(1));  // they are judged
  for (uint32_t number = 0; number < 4; ++number) {
    ASSERT_FALSE(Info(number).in_hbm);
    announce(number, 100'000);
  }
  EXPECT_TRUE(Eventually([&] {
    for (uint32_t number = 0; number < 4; ++number) {
      if (!Info(number).in_hbm) return false;
    }
    return true;
  }));
  for (uint32_t number = 0; number < 4; ++number) {
    EXPECT_TRUE(Read(*client_, number, kOnDevice).ok());
  }
  EXPECT_EQ(Counter("raised_ahead"), 4u);
  EXPECT_EQ(Counter("raised_timely"), 4u);
}

}  // namespace
}  // namespace terrace
