// Leases: time limits, checks on use, false matches, and the daemon's death.
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/client/kv_fixture.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

struct Stored {
  explicit Stored(DaemonProcess& daemon, size_t count = 300) : tokens(Prompt(count)) {
    client = daemon.Connect();
    const auto registered = client->RegisterKv(SmallGeometry());
    EXPECT_TRUE(registered.ok()) << registered.status();
    model = *registered;
    StoreAll(*client, model, tokens);
    match = *client->MatchPrefix(model, tokens);
  }
  std::unique_ptr<Client> client;
  std::vector<uint32_t> tokens;
  Model model;
  PrefixMatch match;
};

TEST(Lease, IsReleasedWithItsObject) {
  DaemonProcess daemon;
  Stored stored(daemon);
  {
    auto lease = stored.client->Acquire(stored.model, stored.match);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(stored.client->Status()->leases, 1u);
    Lease moved = *std::move(lease);
    EXPECT_EQ(stored.client->Status()->leases, 1u);
    EXPECT_FALSE(moved.expired());
    EXPECT_EQ(moved.usable_tokens(), 288u);
  }
  EXPECT_EQ(stored.client->Status()->leases, 0u);
}

TEST(Lease, AssigningOverALeaseReleasesIt) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match);
  ASSERT_TRUE(lease.ok());
  *lease = *stored.client->Acquire(stored.model, stored.match);
  EXPECT_EQ(stored.client->Status()->leases, 1u);
  *lease = Lease();
  EXPECT_EQ(stored.client->Status()->leases, 0u);
  EXPECT_TRUE(absl::IsNotFound(lease->WaitAll()));
}

TEST(Lease, RunsOutAndSaysSo) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match, {.ttl_ms = 100, .priority = 0});
  ASSERT_TRUE(lease.ok()) << lease.status();
  while (!lease->expired()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(absl::IsNotFound(lease->Part(0, 0, KvPart::kK).status()));
  EXPECT_TRUE(absl::IsNotFound(lease->WaitLayer(0)));
  EXPECT_TRUE(absl::IsNotFound(lease->Renew()));
  EXPECT_EQ(lease->ready_parts(0), 0u);
  EXPECT_TRUE(lease->Release().ok());
}

TEST(Lease, RenewMovesTheDeadline) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match, {.ttl_ms = 5000, .priority = 0});
  ASSERT_TRUE(lease.ok());
  const uint64_t before = lease->deadline_us();
  ASSERT_TRUE(lease->Renew(60000).ok());
  EXPECT_GT(lease->deadline_us(), before + 40'000'000);
}

TEST(Lease, BadIndicesNameTheArgument) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match);
  ASSERT_TRUE(lease.ok());
  EXPECT_THAT(Message(lease->Part(2, 0, KvPart::kK).status()), HasSubstr("chunk: 2"));
  EXPECT_THAT(Message(lease->Part(0, 3, KvPart::kK).status()), HasSubstr("part: 7"));
  EXPECT_THAT(Message(lease->Part(0, ~0u, KvPart::kK).status()), HasSubstr("layer"));
  EXPECT_THAT(Message(lease->WaitLayer(3)), HasSubstr("layer: 3"));
  EXPECT_THAT(Message(lease->WaitPart(0, 7)), HasSubstr("part: 7"));
  EXPECT_THAT(Message(lease->WaitPart(9, 1)), HasSubstr("chunk: 9"));
}

TEST(Lease, ObjectsThatAreGoneShortenTheLease) {
  DaemonProcess daemon;
  Stored stored(daemon, 3 * kChunkTokens);
  ASSERT_TRUE(stored.client->Remove(stored.match.chunks[1].key).ok());
  auto lease = stored.client->Acquire(stored.model, stored.match);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->usable_tokens(), kChunkTokens);
  ASSERT_TRUE(stored.client->Remove(stored.match.chunks[0].key).ok());
  EXPECT_TRUE(absl::IsNotFound(stored.client->Acquire(stored.model, stored.match).status()));
  EXPECT_TRUE(absl::IsNotFound(stored.client->Acquire(stored.model, PrefixMatch{}).status()));
  // What is leased stays readable though it was removed.
  ASSERT_TRUE(lease->WaitAll().ok());
  ExpectHolds(*lease, stored.model, stored.tokens);
}

TEST(Lease, AFalsePartialMatchIsDropped) {
  DaemonProcess daemon;
  Stored stored(daemon, 512);
  auto diverging = stored.tokens;
  for (size_t i = 300; i < diverging.size(); ++i) diverging[i] ^= 1;
  auto match = *stored.client->MatchPrefix(stored.model, diverging);
  ASSERT_EQ(match.matched_tokens, 288u);
  ASSERT_EQ(match.chunks.size(), 2u);
  // As if the first four bytes of two different grain keys were equal.
  match.chunks[1].expected_grain.bytes[31] ^= 1;
  auto lease = stored.client->Acquire(stored.model, match);
  ASSERT_TRUE(lease.ok()) << lease.status();
  ASSERT_TRUE(lease->WaitLayer(0).ok());
  EXPECT_EQ(lease->usable_tokens(), 256u);
  EXPECT_TRUE(lease->Part(0, 0, KvPart::kK).ok());
  EXPECT_TRUE(absl::IsNotFound(lease->Part(1, 0, KvPart::kK).status()));
}

TEST(Lease, VerifyAlwaysCatchesAFlippedByte) {
  DaemonSettings settings;
  settings.verify = "always";
  DaemonProcess daemon(settings);
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  const auto tokens = Prompt(512);
  auto store = client->BeginStore(*model, tokens);
  ASSERT_TRUE(store.ok());
  uint8_t* byte = nullptr;
  for (size_t chunk = 0; chunk < 2; ++chunk) {
    for (uint32_t part = 1; part < model->layout.PartCount(); ++part) {
      const auto buffer = store->Buffer(chunk, part);
      ASSERT_TRUE(buffer.ok());
      std::memset(buffer->data(), static_cast<int>(part), buffer->size());
      if (chunk == 1 && part == PartIndex(1, KvPart::kV)) byte = buffer->data() + 77;
    }
  }
  ASSERT_TRUE(store->Commit().ok());
  *byte ^= 0x10;
  auto lease = client->Acquire(*model, *client->MatchPrefix(*model, tokens));
  ASSERT_TRUE(lease.ok());
  ASSERT_TRUE(lease->WaitAll().ok());
  EXPECT_TRUE(lease->Part(1, 1, KvPart::kK).ok());
  const auto flipped = lease->Part(1, 1, KvPart::kV);
  EXPECT_TRUE(absl::IsDataLoss(flipped.status())) << flipped.status();
  EXPECT_EQ(lease->usable_tokens(), 256u);
  EXPECT_TRUE(lease->Part(0, 1, KvPart::kV).ok());
}

TEST(Lease, OutlivesItsClientAsAHandle) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match);
  auto store = stored.client->BeginStore(stored.model, Prompt(256, 9));
  ASSERT_TRUE(lease.ok() && store.ok());
  const auto view = lease->Part(0, 0, KvPart::kK);
  ASSERT_TRUE(view.ok());
  stored.client.reset();
  EXPECT_EQ(std::vector<uint8_t>(view->begin(), view->end()).size(), view->size());  // mapped still
  EXPECT_TRUE(absl::IsUnavailable(lease->Part(0, 0, KvPart::kK).status()));
  EXPECT_TRUE(absl::IsUnavailable(store->Buffer(0, 1).status()));
  const auto other = daemon.Connect();
  while (other->Status()->sessions.size() > 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(other->Status()->leases, 0u);
  EXPECT_EQ(other->Status()->reservations, 0u);
}

TEST(DaemonDeath, EveryCallIsUnavailableAndWhatIsReadyStaysReadable) {
  DaemonProcess daemon;
  Stored stored(daemon);
  auto lease = stored.client->Acquire(stored.model, stored.match);
  ASSERT_TRUE(lease.ok());
  EXPECT_TRUE(stored.client->alive());
  daemon.Kill();
  EXPECT_FALSE(stored.client->alive());
  EXPECT_TRUE(lease->WaitAll().ok());  // everything had been there
  ExpectHolds(*lease, stored.model, stored.tokens);
  EXPECT_TRUE(
      absl::IsUnavailable(stored.client->MatchPrefix(stored.model, stored.tokens).status()));
  EXPECT_TRUE(absl::IsUnavailable(stored.client->Status().status()));
  EXPECT_TRUE(absl::IsUnavailable(lease->Renew()));
  EXPECT_TRUE(lease->Release().ok());
}

}  // namespace
}  // namespace terrace
