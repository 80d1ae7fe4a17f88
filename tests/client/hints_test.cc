// Hints against a real daemon: what they bring up, and that being wrong costs nobody a byte.
#include <gmock/gmock.h>

#include <chrono>
#include <optional>
#include <thread>

#include "tests/client/kv_fixture.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

DaemonSettings Settings(const std::string& extra = {}) {
  DaemonSettings settings;
  settings.host_bytes = 128 * kMiB;
  settings.nvme_bytes = 512 * kMiB;
  settings.extra = extra;
  return settings;
}

// A device so slow that a test can be faster.
DaemonSettings SlowSettings() {
  return Settings("read_limit = \"4MiB\"\npiece_size = \"256KiB\"\n[codec]\nselect = \"raw\"\n");
}

// About 1.1 MiB a chunk.
KvGeometry LargeGeometry() {
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 64;
  return geometry;
}

ExpectedRead Expect(uint64_t request_id, absl::Span<const uint32_t> tokens) {
  ExpectedRead read;
  read.request_id = request_id;
  read.tokens = tokens;
  return read;
}

uint64_t HostObjects(Client& client) { return client.Status()->tiers[0].objects; }

// A daemon whose objects are all on NVMe and nowhere else, and a client of it.
class HintsTest : public testing::Test {
 protected:
  void Begin(const DaemonSettings& settings, const std::vector<std::vector<uint32_t>>& prompts,
             const KvGeometry& geometry = LargeGeometry()) {
    daemon_.emplace(settings);
    Connect(geometry);
    for (const auto& tokens : prompts) {
      ASSERT_EQ(StoreAll(*client_, *model_, tokens).failed, 0u);
    }
    ASSERT_TRUE(client_->Flush(120000).ok());
    client_.reset();
    daemon_->Restart();
    Connect(geometry);
  }
  void Connect(const KvGeometry& geometry) {
    client_ = daemon_->Connect();
    ASSERT_NE(client_, nullptr);
    auto model = client_->RegisterKv(geometry);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }
  HintReport Hint(const ExpectedRead& read) {
    const auto report = client_->Hint(*model_, {&read, 1});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : HintReport{};
  }
  uint64_t Count(std::string_view name) { return Counter(*client_, name); }

  std::optional<DaemonProcess> daemon_;
  std::unique_ptr<Client> client_;
  std::optional<Model> model_;
};

TEST_F(HintsTest, AnAnnouncedPromptIsInHostMemoryWhenItIsAcquired) {
  const auto tokens = Prompt(12 * kChunkTokens + 100);  // and a chunk of what remains
  Begin(Settings(), {tokens});
  const HintReport report = Hint(Expect(1, tokens));
  EXPECT_EQ(report.accepted, 1u);
  EXPECT_EQ(report.keys, 13u);
  EXPECT_TRUE(report.why.ok()) << report.why;
  ASSERT_TRUE(Eventually([&] { return HostObjects(*client_) == 13; })) << HostObjects(*client_);
  EXPECT_EQ(LoadAll(*client_, *model_, tokens), 12 * kChunkTokens + 96);
  EXPECT_EQ(Count("acquired_host"), 13u);
  EXPECT_EQ(Count("acquired_nvme"), 0u);
  EXPECT_EQ(Count("prefetch_queue_issued"), 13u);
  EXPECT_EQ(Count("prefetch_queue_timely"), 13u);
  EXPECT_EQ(Count("hint_requests"), 0u);  // it started
}

TEST_F(HintsTest, KeysAloneAreEnoughOnceTheirLayoutIsRegistered) {
  const auto tokens = Prompt(4 * kChunkTokens);
  Begin(Settings(), {tokens});
  const auto match = client_->MatchPrefix(*model_, tokens);
  std::vector<ObjectKey> keys;
  for (const ChunkMatch& chunk : match->chunks) keys.push_back(chunk.key);
  ExpectedRead read;
  read.kind = HintKind::kDocuments;
  read.confidence = 0.9f;
  read.keys = keys;
  const auto report = client_->Hint({&read, 1});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->keys, 4u);
  ASSERT_TRUE(Eventually([&] { return HostObjects(*client_) == 4; }));
  EXPECT_EQ(Count("prefetch_documents_issued"), 4u);
}

TEST_F(HintsTest, WhatIsAnnouncedStaysWhenOthersLeave) {
  DaemonSettings settings = Settings();
  settings.host_bytes = 32 * kMiB;
  const auto wanted = Prompt(4 * kChunkTokens, 1), unwanted = Prompt(4 * kChunkTokens, 2);
  Begin(settings, {wanted, unwanted});
  // A source that nobody knows decides nothing: it has to have been right for a while.
  for (uint32_t seed = 100; seed < 140; ++seed) {
    const auto proof = Prompt(kChunkTokens, seed);
    ASSERT_EQ(StoreAll(*client_, *model_, proof).failed, 0u);
    Hint(Expect(seed, proof));
    ASSERT_EQ(LoadAll(*client_, *model_, proof), kChunkTokens);
  }
  std::this_thread::sleep_for(std::chrono::seconds(1));  // until that is judged
  ASSERT_TRUE(client_->Flush(60000).ok());  // what is not written yet cannot leave
  ASSERT_EQ(LoadAll(*client_, *model_, wanted), 4 * kChunkTokens);
  ASSERT_EQ(LoadAll(*client_, *model_, unwanted), 4 * kChunkTokens);
  ExpectedRead later = Expect(1, wanted);
  later.eta_us = 60'000'000;
  Hint(later);
  const uint64_t issued = Count("prefetch_queue_issued");
  for (uint32_t seed = 10; seed < 60; ++seed) {  // more than all of host memory
    ASSERT_EQ(StoreAll(*client_, *model_, Prompt(kChunkTokens, seed)).failed, 0u);
    if (seed % 5 == 0) ASSERT_TRUE(client_->Flush(60000).ok());
  }
  ASSERT_TRUE(client_->Flush(60000).ok());
  const uint64_t from_host = Count("acquired_host"), from_nvme = Count("acquired_nvme");
  EXPECT_EQ(LoadAll(*client_, *model_, wanted), 4 * kChunkTokens);
  EXPECT_EQ(Count("acquired_host"), from_host + 4);
  EXPECT_EQ(Count("acquired_nvme"), from_nvme);
  EXPECT_EQ(Count("prefetch_queue_issued"), issued);  // it did not leave and come back
  EXPECT_EQ(LoadAll(*client_, *model_, unwanted), 4 * kChunkTokens);
  EXPECT_GT(Count("acquired_nvme"), from_nvme);
}

TEST_F(HintsTest, AWrongHintIsCountedAndHarmsNobody) {
  const auto wrong = Prompt(6 * kChunkTokens, 1), right = Prompt(6 * kChunkTokens, 2);
  Begin(Settings(), {wrong, right});
  Hint(Expect(1, wrong));
  ASSERT_TRUE(Eventually([&] { return HostObjects(*client_) == 6; }));
  EXPECT_EQ(LoadAll(*client_, *model_, right), 6 * kChunkTokens);
  EXPECT_GE(Count("acquired_nvme"), 6u);  // again where memory was still growing
  const uint64_t id = 1;
  ASSERT_TRUE(client_->Withdraw({&id, 1}).ok());
  EXPECT_TRUE(Eventually([&] { return Count("prefetch_queue_unused") == 6; }));
  EXPECT_EQ(Count("prefetch_queue_timely"), 0u);
  EXPECT_EQ(LoadAll(*client_, *model_, wrong), 6 * kChunkTokens);  // and what is there is right
}

TEST_F(HintsTest, AWithdrawnHintStopsWhatItBegan) {
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 256;  // 4.5 MiB a chunk: more than a second each
  const auto tokens = Prompt(6 * kChunkTokens);
  Begin(SlowSettings(), {tokens}, geometry);
  Hint(Expect(1, tokens));
  ASSERT_TRUE(Eventually([&] { return Count("prefetch_queue_issued") > 0; }));
  const uint64_t id = 1;
  ASSERT_TRUE(client_->Withdraw({&id, 1}).ok());
  EXPECT_EQ(Count("hint_requests"), 0u);
  EXPECT_GE(Count("prefetch_queue_cancelled"), 1u);
  EXPECT_LE(Count("prefetch_queue_issued"), 2u);
  // Its memory is given back.
  EXPECT_TRUE(Eventually([&] { return client_->Status()->tiers[0].used_bytes == 0; }));
  EXPECT_EQ(HostObjects(*client_), 0u);
}

TEST_F(HintsTest, WhoComesAfterACancellationIsServed) {
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 256;
  const auto tokens = Prompt(2 * kChunkTokens);
  Begin(SlowSettings(), {tokens}, geometry);
  Hint(Expect(1, tokens));
  ASSERT_TRUE(Eventually([&] { return Count("prefetch_queue_issued") > 0; }));
  const auto match = client_->MatchPrefix(*model_, tokens);
  const uint64_t id = 1;
  ASSERT_TRUE(client_->Withdraw({&id, 1}).ok());
  auto lease = client_->Acquire(*model_, *match);
  ASSERT_TRUE(lease.ok()) << lease.status();
  const absl::Status loaded = lease->WaitAll(60000);
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(lease->usable_tokens(), 2 * kChunkTokens);
  ExpectHolds(*lease, *model_, tokens);
  EXPECT_EQ(Count("promotion_failures"), 0u);
}

TEST_F(HintsTest, DemandJoinsWhatIsOnItsWay) {
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 256;
  const auto tokens = Prompt(2 * kChunkTokens);
  Begin(SlowSettings(), {tokens}, geometry);
  Hint(Expect(1, tokens));
  ASSERT_TRUE(Eventually([&] { return Count("prefetch_queue_issued") > 0; }));
  EXPECT_EQ(LoadAll(*client_, *model_, tokens), 2 * kChunkTokens);
  EXPECT_GE(Count("prefetch_queue_late"), 1u);
  EXPECT_EQ(Count("nvme_read_bytes"), Count("promoted_bytes")) << "nothing was read twice";
}

TEST_F(HintsTest, TheEndOfASessionWithdrawsItsHints) {
  const auto tokens = Prompt(4 * kChunkTokens), never_stored = Prompt(8 * kChunkTokens, 3);
  Begin(Settings(), {tokens});
  {
    const auto other = daemon_->Connect();
    const auto model = other->RegisterKv(LargeGeometry());
    const std::vector<ExpectedRead> reads = {Expect(1, tokens), Expect(2, never_stored)};
    ASSERT_EQ(other->Hint(*model, reads)->keys, 12u);
    EXPECT_EQ(Count("hint_requests"), 2u);
    EXPECT_EQ(Count("hint_expected_objects"), 12u);
  }
  EXPECT_TRUE(Eventually([&] { return Count("hint_requests") == 0; }));
  EXPECT_EQ(Count("hint_expected_objects"), 0u);
  EXPECT_EQ(Count("hint_withdrawn"), 2u);
}

TEST_F(HintsTest, AFloodIsBounded) {
  daemon_.emplace(Settings("[limits]\nmax_hints_per_session = 100\nmax_keys_per_call = 64\n"));
  Connect(SmallGeometry());
  // One hint can be no longer than a call.
  const auto long_prompt = Prompt(80 * kChunkTokens);
  HintReport report = Hint(Expect(1, long_prompt));
  EXPECT_EQ(report.refused, 1u);
  EXPECT_EQ(report.keys, 64u);
  EXPECT_TRUE(absl::IsResourceExhausted(report.why)) << report.why;
  EXPECT_THAT(std::string(report.why.message()), HasSubstr("max_keys_per_call = 64"));
  // All hints of a session have a limit: 64 + 36.
  report = Hint(Expect(2, Prompt(50 * kChunkTokens, 2)));
  EXPECT_EQ(report.keys, 36u);
  EXPECT_TRUE(absl::IsResourceExhausted(report.why)) << report.why;
  EXPECT_THAT(std::string(report.why.message()), HasSubstr("limits.max_hints_per_session = 100"));
  EXPECT_EQ(Hint(Expect(3, Prompt(kChunkTokens, 3))).keys, 0u);
  EXPECT_EQ(Count("hint_expected_objects"), 100u);
  // What is withdrawn, or said anew, makes room.
  const std::vector<uint64_t> ids = {1, 99};
  EXPECT_EQ(client_->Withdraw(ids)->refused, 0u);
  EXPECT_EQ(Hint(Expect(2, Prompt(50 * kChunkTokens, 2))).keys, 50u);
  EXPECT_EQ(Count("hint_expected_objects"), 50u);
  // Requests without objects are bounded, too, by what the daemon keeps of all sessions.
  std::vector<ExpectedRead> empty(64);
  uint64_t next = 1000;
  absl::Status why;
  for (int call = 0; call < 1000 && why.ok(); ++call) {
    for (ExpectedRead& read : empty) read.request_id = next++;
    const auto sent = client_->Hint(empty);
    ASSERT_TRUE(sent.ok()) << sent.status();
    why = sent->why;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(why)) << why;
  EXPECT_LE(Count("hint_requests"), 16384u);
  EXPECT_EQ(StoreAll(*client_, *model_, long_prompt).failed, 0u);  // and the daemon serves
  EXPECT_EQ(LoadAll(*client_, *model_, long_prompt), long_prompt.size());
}

TEST_F(HintsTest, HintsOfWhatIsNotStoredYetAreFine) {
  daemon_.emplace(Settings());
  Connect(LargeGeometry());
  const auto tokens = Prompt(4 * kChunkTokens);
  const HintReport report = Hint(Expect(1, tokens));
  EXPECT_EQ(report.accepted, 1u);
  EXPECT_EQ(report.keys, 4u);
  EXPECT_EQ(Count("prefetch_queue_issued"), 0u);
  EXPECT_EQ(StoreAll(*client_, *model_, tokens).stored, 4u);
  EXPECT_EQ(LoadAll(*client_, *model_, tokens), tokens.size());
  EXPECT_EQ(Count("hint_requests"), 0u);
}

TEST_F(HintsTest, ADeadlineThatPassesWithdraws) {
  const auto tokens = Prompt(4 * kChunkTokens);
  daemon_.emplace(Settings());
  Connect(LargeGeometry());
  ExpectedRead read = Expect(1, tokens);
  read.deadline_us = 50'000;
  Hint(read);
  EXPECT_TRUE(Eventually([&] { return Count("hint_requests") == 0; }));
  EXPECT_EQ(Count("hint_lapsed"), 1u);
}

TEST_F(HintsTest, NothingIsMovedWherePrefetchIsOff) {
  const auto tokens = Prompt(4 * kChunkTokens);
  Begin(Settings("[prefetch]\nenabled = false\n"), {tokens});
  EXPECT_EQ(Hint(Expect(1, tokens)).keys, 4u);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(HostObjects(*client_), 0u);
  EXPECT_EQ(LoadAll(*client_, *model_, tokens), tokens.size());
}

TEST_F(HintsTest, BadArgumentsAreNamed) {
  daemon_.emplace(Settings());
  Connect(SmallGeometry());
  const auto tokens = Prompt(kChunkTokens);
  const ObjectKey key;
  ExpectedRead read = Expect(1, tokens);
  EXPECT_THAT(std::string(client_->Hint({&read, 1}).status().message()),
              HasSubstr("reads[0].tokens: need a model"));
  read.keys = {&key, 1};
  EXPECT_THAT(std::string(client_->Hint(*model_, {&read, 1}).status().message()),
              HasSubstr("reads[0].tokens: given beside keys"));
  read.keys = {};
  read.confidence = 2;
  EXPECT_THAT(std::string(client_->Hint(*model_, {&read, 1}).status().message()),
              HasSubstr("hints.confidence: 2 is not 0 .. 1"));
  read.confidence = 1;
  Model stale = *model_;
  stale.layout_id = 77;
  EXPECT_THAT(std::string(client_->Hint(stale, {&read, 1}).status().message()),
              HasSubstr("layout_id 77"));
}

}  // namespace
}  // namespace terrace
