// What survives the daemon, and loads that take time.
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/client/kv_fixture.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

DaemonSettings WithNvme() {
  DaemonSettings settings;
  settings.host_bytes = uint64_t{128} << 20;
  settings.nvme_bytes = uint64_t{512} << 20;
  return settings;
}

// About 1.1 MiB a chunk, so that a load takes a while.
KvGeometry LargeGeometry() {
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 64;
  return geometry;
}

TEST(Nvme, FlushedObjectsSurviveSigkillAndLoadFromNvme) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(1000);
  {
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(SmallGeometry());
    ASSERT_EQ(StoreAll(*client, *model, tokens).stored, 4u);
    const absl::Status flushed = client->Flush(60000);
    ASSERT_TRUE(flushed.ok()) << flushed;
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  ASSERT_TRUE(model.ok());
  const auto match = client->MatchPrefix(*model, tokens);
  ASSERT_TRUE(match.ok());
  EXPECT_EQ(match->matched_tokens, 992u);
  for (const ChunkMatch& chunk : match->chunks) {
    EXPECT_EQ(chunk.info.tier, TierId::kNvme);
    EXPECT_NE(chunk.info.flags & kFlagDurable, 0);
  }
  EXPECT_EQ(LoadAll(*client, *model, tokens), 992u);
  EXPECT_EQ(client->MatchPrefix(*model, tokens)->chunks[0].info.tier, TierId::kHost);
}

TEST(Nvme, PartialMatchesAreVerifiedAfterARestartToo) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(512);
  {
    const auto client = daemon.Connect();
    StoreAll(*client, *client->RegisterKv(SmallGeometry()), tokens);
    ASSERT_TRUE(client->Flush(60000).ok());
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  auto diverging = tokens;
  for (size_t i = 400; i < diverging.size(); ++i) diverging[i] ^= 1;
  EXPECT_EQ(LoadAll(*client, *model, diverging), 400u);
}

TEST(Nvme, SigtermMakesWhatWasCommittedDurable) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(600);
  {
    const auto client = daemon.Connect();
    StoreAll(*client, *client->RegisterKv(SmallGeometry()), tokens);
  }
  EXPECT_EQ(daemon.Terminate(), 0);
  daemon.Start();
  const auto client = daemon.Connect();
  EXPECT_EQ(LoadAll(*client, *client->RegisterKv(SmallGeometry()), tokens), 592u);
}

TEST(Nvme, PinsSurviveSigkill) {
  DaemonProcess daemon(WithNvme());
  std::vector<ObjectKey> keys;
  {
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(SmallGeometry());
    StoreAll(*client, *model, Prompt(1024));
    const auto match = client->MatchPrefix(*model, Prompt(1024));
    ASSERT_TRUE(match.ok()) << match.status();
    for (const ChunkMatch& chunk : match->chunks) keys.push_back(chunk.key);
    ASSERT_EQ(keys.size(), 4u);
    ASSERT_TRUE(client->Pin(keys[0], true).ok());  // most likely while it is being written
    ASSERT_TRUE(client->Pin(keys[1], true).ok());
    ASSERT_TRUE(client->Flush(60000).ok());
    ASSERT_TRUE(client->Pin(keys[2], true).ok());  // durable by now
    ASSERT_TRUE(client->Pin(keys[1], false).ok());
    ASSERT_TRUE(client->Flush(60000).ok());  // waits for pins as for objects
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto object = client->Show(keys[i]);
    ASSERT_TRUE(object.ok()) << object.status();
    EXPECT_EQ(object->pinned, i == 0 || i == 2) << i;
  }
}

TEST(Nvme, WhatIsQuickToMakeAgainIsWrittenOnceItIsWantedAgain) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(1024);
  constexpr uint32_t kQuickUs = 4;  // less than reading it would take
  {
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(SmallGeometry());
    EXPECT_EQ(StoreAll(*client, *model, tokens, {}, kQuickUs).stored, 4u);
    ASSERT_TRUE(client->Flush(60000).ok());
    EXPECT_EQ(Counter(*client, "not_admitted"), 4u);
    EXPECT_EQ(Counter(*client, "durable_objects"), 0u);
    EXPECT_EQ(LoadAll(*client, *model, absl::MakeSpan(tokens).first(512)), 512u);
    ASSERT_TRUE(client->Flush(60000).ok());
    EXPECT_EQ(Counter(*client, "durable_objects"), 2u);
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  EXPECT_EQ(client->List(0, 100)->objects.size(), 2u);
  // Reading it would take longer than making it again, so an engine is told to do that.
  EXPECT_EQ(client->MatchPrefix(*model, tokens)->matched_tokens, 0u);
  EXPECT_EQ(Counter(*client, "recompute_advised"), 2u);
}

TEST(Nvme, TheEventDescriptorTellsOfProgress) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(2048);
  {
    const auto client = daemon.Connect();
    StoreAll(*client, *client->RegisterKv(LargeGeometry()), tokens);
    ASSERT_TRUE(client->Flush(60000).ok());
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(LargeGeometry());
  auto lease = client->Acquire(*model, *client->MatchPrefix(*model, tokens));
  ASSERT_TRUE(lease.ok()) << lease.status();
  const size_t last = lease->chunks().size() - 1;
  while (lease->ready_parts(last) < model->layout.PartCount()) {
    pollfd event{client->ready_event_fd(), POLLIN, 0};
    ASSERT_EQ(poll(&event, 1, 60000), 1);
    uint64_t count = 0;
    ASSERT_EQ(read(event.fd, &count, sizeof count), static_cast<ssize_t>(sizeof count));
    EXPECT_GT(count, 0u);
  }
  ASSERT_TRUE(lease->WaitAll(60000).ok());
  ExpectHolds(*lease, *model, tokens);
}

TEST(Nvme, SigkillDuringAWaitIsUnavailable) {
  DaemonProcess daemon(WithNvme());
  const auto tokens = Prompt(64 * kChunkTokens);  // 72 MiB
  {
    const auto client = daemon.Connect();
    EXPECT_EQ(StoreAll(*client, *client->RegisterKv(LargeGeometry()), tokens).failed, 0u);
    ASSERT_TRUE(client->Flush(120000).ok());
  }
  // Stopping the daemon in the middle of the load is a race that the load may win: then again.
  for (int attempt = 0; attempt < 10; ++attempt) {
    daemon.Restart();
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(LargeGeometry());
    const auto match = client->MatchPrefix(*model, tokens);
    ASSERT_TRUE(match.ok());
    auto lease = client->Acquire(*model, *match);
    ASSERT_TRUE(lease.ok()) << lease.status();
    daemon.Signal(SIGSTOP);
    const absl::Status stopped = lease->WaitAll(50);
    if (stopped.ok()) continue;
    EXPECT_TRUE(absl::IsDeadlineExceeded(stopped)) << stopped;
    absl::Status waited;
    std::thread waiter([&] { waited = lease->WaitAll(); });
    daemon.Kill();
    waiter.join();
    EXPECT_TRUE(absl::IsUnavailable(waited)) << waited;
    EXPECT_THAT(std::string(waited.message()), testing::HasSubstr("ready up to layer"));
    EXPECT_TRUE(absl::IsUnavailable(lease->Part(63, 2, KvPart::kV).status()));
    daemon.Start();
    return;
  }
  FAIL() << "the load always finished before the daemon could be stopped";
}

}  // namespace
}  // namespace terrace
