// Client against a real daemon with a host tier: prefixes, stores, geometry, tenants.
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "client/terrace.h"
#include "tests/client/kv_fixture.h"
#include "tests/support/daemon_process.h"
#include "transport/connection.h"

namespace terrace {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class ClientTest : public testing::TestWithParam<KvOrder> {
 protected:
  void SetUp() override {
    client_ = daemon_.Connect();
    ASSERT_NE(client_, nullptr);
    model_ = Register(SmallGeometry(GetParam()));
  }
  Model Register(const KvGeometry& geometry) {
    const auto model = client_->RegisterKv(geometry);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *model : Model{};
  }
  uint32_t Matched(absl::Span<const uint32_t> tokens, std::string_view extra = {}) {
    const auto match = client_->MatchPrefix(model_, tokens, extra);
    EXPECT_TRUE(match.ok()) << match.status();
    return match.ok() ? match->matched_tokens : 0;
  }

  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Model model_;
};

INSTANTIATE_TEST_SUITE_P(Orders, ClientTest,
                         testing::Values(KvOrder::kTokenMajor, KvOrder::kHeadMajor));

TEST_P(ClientTest, WhatWasStoredIsFoundAndReadInPlace) {
  const auto tokens = Prompt(600);
  const CommitReport report = StoreAll(*client_, model_, tokens);
  EXPECT_EQ(report.stored, 3u);  // 256 + 256 + 80 of the 88 that remain
  EXPECT_EQ(report.failed, 0u);
  const auto match = client_->MatchPrefix(model_, tokens);
  ASSERT_TRUE(match.ok());
  EXPECT_EQ(match->matched_tokens, 592u);
  ASSERT_EQ(match->chunks.size(), 3u);
  EXPECT_EQ(match->chunks[2].object_tokens, 80u);
  EXPECT_EQ(match->chunks[0].info.tier, TierId::kHost);
  EXPECT_EQ(LoadAll(*client_, model_, tokens), 592u);
}

TEST_P(ClientTest, ASecondProcessSessionReadsTheSameBytes) {
  const auto tokens = Prompt(512);
  StoreAll(*client_, model_, tokens);
  const auto other = daemon_.Connect();
  const auto model = other->RegisterKv(SmallGeometry(GetParam()));
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(LoadAll(*other, *model, tokens), 512u);
}

TEST_P(ClientTest, APromptThatDivergesInsideAChunkKeepsItsWholeGrains) {
  const auto tokens = Prompt(600);
  StoreAll(*client_, model_, tokens);
  for (const uint32_t shared : {0u, 15u, 16u, 100u, 255u, 256u, 271u, 300u, 511u, 530u}) {
    auto other = tokens;
    for (size_t i = shared; i < other.size(); ++i) other[i] ^= 0x40000000;
    EXPECT_EQ(LoadAll(*client_, model_, other), shared / 16 * 16) << shared << " shared";
  }
}

TEST_P(ClientTest, AShorterOrLongerPromptMatchesAtGrainSize) {
  const auto tokens = Prompt(600);
  StoreAll(*client_, model_, tokens);
  const auto view = absl::MakeConstSpan(tokens);
  EXPECT_EQ(LoadAll(*client_, model_, view.first(100)), 96u);
  EXPECT_EQ(LoadAll(*client_, model_, view.first(256 + 17)), 272u);
  EXPECT_EQ(Matched(view.first(15)), 0u);
  EXPECT_EQ(Matched({}), 0u);
  EXPECT_EQ(LoadAll(*client_, model_, Prompt(2000)), 592u);
}

TEST_P(ClientTest, ExtraSeparatesCachesOfEqualTokens) {
  const auto tokens = Prompt(256);
  StoreAll(*client_, model_, tokens, "image a");
  EXPECT_EQ(Matched(tokens, "image a"), 256u);
  EXPECT_EQ(Matched(tokens, "image b"), 0u);
  EXPECT_EQ(Matched(tokens), 0u);
}

TEST_P(ClientTest, RowsAndBuffersWriteWhatWholePartsWrite) {
  const auto tokens = Prompt(300);
  const KvGeometry& geometry = model_.geometry;
  auto store = client_->BeginStore(model_, tokens);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_EQ(store->needed_chunks(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const StoreChunk chunk = store->chunks()[i];
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      // K out of a tensor of all tokens, as an engine has it; V in place.
      const auto all = PartBytes(geometry, layer, KvPart::kK, tokens, 0, 300);
      const size_t head_bytes = geometry.head_dim * DtypeBytes(geometry.dtype);
      const bool heads_first = GetParam() == KvOrder::kHeadMajor;
      const size_t rows = heads_first ? geometry.kv_heads : chunk.token_count;
      const size_t row_bytes = head_bytes * (heads_first ? chunk.token_count : geometry.kv_heads);
      const size_t stride = head_bytes * (heads_first ? 300 : geometry.kv_heads);
      const size_t begin = chunk.token_begin * head_bytes * (heads_first ? 1 : geometry.kv_heads);
      ASSERT_TRUE(store
                      ->WriteRows(i, PartIndex(layer, KvPart::kK), all.data() + begin, rows,
                                  row_bytes, stride)
                      .ok());
      const auto values =
          PartBytes(geometry, layer, KvPart::kV, tokens, chunk.token_begin, chunk.token_count);
      const auto buffer = store->Buffer(i, PartIndex(layer, KvPart::kV));
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      ASSERT_EQ(buffer->size(), values.size());
      std::memcpy(buffer->data(), values.data(), values.size());
    }
  }
  CommitReport report;
  ASSERT_TRUE(store->Commit(&report).ok());
  EXPECT_EQ(report.stored, 2u);
  EXPECT_EQ(LoadAll(*client_, model_, tokens), 288u);
  const auto verified = client_->Verify();  // the daemon's view of the checksums
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->checked, 2u);
  EXPECT_EQ(verified->corrupt, 0u);
}

TEST_P(ClientTest, NothingIsVisibleBeforeCommitAndADroppedStoreLeavesNothing) {
  const auto tokens = Prompt(512);
  {
    auto store = client_->BeginStore(model_, tokens);
    ASSERT_TRUE(store.ok());
    const auto bytes = store->PartBytes(0, 1);
    const std::vector<uint8_t> zeros(*bytes);
    ASSERT_TRUE(store->Write(0, 1, zeros.data(), zeros.size()).ok());
    EXPECT_EQ(Matched(tokens), 0u);
    EXPECT_EQ(client_->Status()->reservations, 2u);
  }
  EXPECT_EQ(client_->Status()->reservations, 0u);
  EXPECT_EQ(Matched(tokens), 0u);
  EXPECT_EQ(StoreAll(*client_, model_, tokens).stored, 2u);
}

TEST_P(ClientTest, AChunkWithAnUnwrittenPartIsAnErrorAndNotStored) {
  const auto tokens = Prompt(512);
  auto store = client_->BeginStore(model_, tokens);
  ASSERT_TRUE(store.ok());
  for (size_t chunk = 0; chunk < 2; ++chunk) {
    for (uint32_t part = 1; part < model_.layout.PartCount(); ++part) {
      if (chunk == 1 && part == 4) continue;
      const std::vector<uint8_t> zeros(*store->PartBytes(chunk, part));
      ASSERT_TRUE(store->Write(chunk, part, zeros.data(), zeros.size()).ok());
    }
  }
  CommitReport report;
  const absl::Status committed = store->Commit(&report);
  EXPECT_TRUE(absl::IsInvalidArgument(committed)) << committed;
  EXPECT_THAT(Message(committed), HasSubstr("chunk 1: part 4"));
  EXPECT_EQ(report.stored, 1u);
  EXPECT_EQ(report.failed, 1u);
  EXPECT_EQ(Matched(tokens), 256u);
  EXPECT_EQ(client_->Status()->reservations, 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(store->Commit()));
}

TEST_P(ClientTest, BadWritesNameTheArgument) {
  const auto tokens = Prompt(256);
  auto store = client_->BeginStore(model_, tokens);
  ASSERT_TRUE(store.ok());
  const std::vector<uint8_t> bytes(*store->PartBytes(0, 1));
  EXPECT_THAT(Message(store->Write(1, 1, bytes.data(), bytes.size())), HasSubstr("chunk: 1"));
  EXPECT_THAT(Message(store->Write(0, 0, bytes.data(), bytes.size())), HasSubstr("part: 0"));
  EXPECT_THAT(Message(store->Write(0, 7, bytes.data(), bytes.size())), HasSubstr("part: 7"));
  EXPECT_THAT(Message(store->Write(0, 1, bytes.data(), bytes.size() - 1)), HasSubstr("bytes"));
  EXPECT_THAT(Message(store->Write(0, 1, nullptr, bytes.size())), HasSubstr("source"));
  EXPECT_THAT(Message(store->WriteRows(0, 1, bytes.data(), 0, 0, 0)), HasSubstr("bytes"));
  EXPECT_THAT(Message(store->WriteRows(0, 1, bytes.data(), ~size_t{0}, 2, 2)), HasSubstr("bytes"));
}

TEST_P(ClientTest, WhatIsThereIsNotStoredAgain) {
  const auto tokens = Prompt(600);
  StoreAll(*client_, model_, tokens);
  const CommitReport again = StoreAll(*client_, model_, tokens);
  EXPECT_EQ(again.already, 3u);
  EXPECT_EQ(again.stored, 0u);
  auto longer = tokens;
  for (uint32_t i = 0; i < 200; ++i) longer.push_back(i);
  const CommitReport more = StoreAll(*client_, model_, longer);
  EXPECT_EQ(more.already, 2u);
  EXPECT_EQ(more.stored, 2u);  // 512 .. 768 whole, 768 .. 800
  EXPECT_EQ(LoadAll(*client_, model_, longer), 800u);
}

TEST_P(ClientTest, OfTwoConcurrentStoresOneWins) {
  const auto tokens = Prompt(512);
  auto first = client_->BeginStore(model_, tokens);
  ASSERT_TRUE(first.ok());
  const auto other = daemon_.Connect();
  const auto model = other->RegisterKv(SmallGeometry(GetParam()));
  const CommitReport report = StoreAll(*other, *model, tokens);
  EXPECT_EQ(report.already, 2u);
  EXPECT_EQ(report.stored, 0u);
  first->Abort();
  EXPECT_EQ(StoreAll(*other, *model, tokens).stored, 2u);
}

TEST_P(ClientTest, ManyThreadsShareOneClient) {
  std::vector<std::thread> threads;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      const auto tokens = Prompt(300, seed * 1000);
      for (int i = 0; i < 5; ++i) {
        StoreAll(*client_, model_, tokens);
        EXPECT_EQ(LoadAll(*client_, model_, tokens), 288u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(client_->Status()->leases, 0u);
  EXPECT_EQ(client_->Status()->reservations, 0u);
}

TEST_P(ClientTest, AnotherGeometryIsAMissNeverGarbage) {
  const auto tokens = Prompt(256);
  StoreAll(*client_, model_, tokens);
  const auto match = client_->MatchPrefix(model_, tokens);
  ASSERT_TRUE(match.ok());
  KvGeometry dtype = SmallGeometry(GetParam()), heads = dtype, rope = dtype;
  dtype.dtype = Dtype::kBf16;
  heads.kv_heads = 4;
  rope.rope_theta = 500000;
  for (const KvGeometry& geometry : {dtype, heads, rope}) {
    const Model other = Register(geometry);
    const auto none = client_->MatchPrefix(other, tokens);
    ASSERT_TRUE(none.ok());
    EXPECT_EQ(none->matched_tokens, 0u);
    // Keys of one model used with another are refused too.
    const auto lease = client_->Acquire(other, *match);
    EXPECT_TRUE(absl::IsFailedPrecondition(lease.status())) << lease.status();
  }
}

TEST_P(ClientTest, BadGeometryNamesTheField) {
  KvGeometry heads = SmallGeometry(GetParam()), model = heads, dim = heads;
  heads.kv_heads = 0;
  model.model_id.clear();
  dim.head_dim = 1 << 20;
  EXPECT_THAT(Message(client_->RegisterKv(heads).status()), HasSubstr("kv_heads"));
  EXPECT_THAT(Message(client_->RegisterKv(model).status()), HasSubstr("model_id"));
  EXPECT_THAT(Message(client_->RegisterKv(dim).status()), HasSubstr("head_dim"));
}

TEST(ClientLimits, ChunksWithoutRoomAreGivenUpAndTheRestIsStored) {
  DaemonSettings settings;
  settings.host_bytes = uint64_t{4} << 20;
  DaemonProcess daemon(settings);
  ClientOptions options = daemon.Options();
  options.room_timeout_ms = 2000;
  const auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok());
  KvGeometry geometry = SmallGeometry();
  geometry.kv_heads = 64;  // 1.1 MiB a chunk
  const auto model = (*client)->RegisterKv(geometry);
  ASSERT_TRUE(model.ok());
  const auto tokens = Prompt(8 * kChunkTokens);
  const CommitReport report = StoreAll(**client, *model, tokens);
  EXPECT_GE(report.stored, 1u);
  EXPECT_GE(report.failed, 1u);
  EXPECT_EQ(report.stored + report.failed, 8u);
  EXPECT_TRUE(absl::IsResourceExhausted(report.why)) << report.why;
  EXPECT_EQ(LoadAll(**client, *model, tokens), report.stored * kChunkTokens);
  EXPECT_EQ((*client)->Status()->reservations, 0u);
}

TEST(ClientLimits, KeysTravelInCallsOfWhatTheDaemonTakes) {
  DaemonSettings settings;
  settings.extra = "[limits]\nmax_keys_per_call = 16\n";
  DaemonProcess daemon(settings);
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  ASSERT_TRUE(model.ok());
  const auto tokens = Prompt(40 * kChunkTokens + 50);
  EXPECT_EQ(StoreAll(*client, *model, tokens).stored, 41u);
  EXPECT_EQ(LoadAll(*client, *model, tokens), 40 * kChunkTokens + 48);
  EXPECT_EQ(client->Status()->leases, 0u);
}

TEST(ClientOpaque, ObjectsOfAnySizeComeBackWithTheirLength) {
  DaemonProcess daemon;
  const auto client = daemon.Connect();
  for (const size_t size : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{1} << 20}) {
    const std::vector<uint8_t> bytes(size, static_cast<uint8_t>(size % 251));
    const ObjectKey key = client->KeyFor(std::to_string(size));
    EXPECT_TRUE(absl::IsNotFound(client->Get(key).status()));
    ASSERT_TRUE(client->Put(key, bytes).ok());
    EXPECT_TRUE(absl::IsAlreadyExists(client->Put(key, bytes)));
    auto lease = client->Get(key);
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_TRUE(lease->WaitAll().ok());
    const auto held = lease->RawPart(0, 1);
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_TRUE(std::equal(held->begin(), held->end(), bytes.begin(), bytes.end())) << size;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(client->Put(client->KeyFor("empty"), {})));
}

TEST(ClientOpaque, AKvObjectIsNotAnOpaqueOne) {
  DaemonProcess daemon;
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  const auto tokens = Prompt(256);
  StoreAll(*client, *model, tokens);
  const auto match = client->MatchPrefix(*model, tokens);
  const auto lease = client->Get(match->chunks[0].key);
  EXPECT_TRUE(absl::IsFailedPrecondition(lease.status())) << lease.status();
}

TEST(ClientOperators, ListShowPinRemove) {
  DaemonProcess daemon;
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(SmallGeometry());
  StoreAll(*client, *model, Prompt(512));
  const auto list = client->List(0, 100);
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->objects.size(), 2u);
  const ObjectKey key = list->objects[0].key;
  ASSERT_TRUE(client->Pin(key, true).ok());
  EXPECT_TRUE(client->Show(key)->pinned);
  EXPECT_TRUE(client->Remove(key).ok());
  EXPECT_TRUE(absl::IsNotFound(client->Show(key).status()));
  EXPECT_TRUE(absl::IsNotFound(client->Remove(key)));
  EXPECT_TRUE(client->Flush().ok());
}

constexpr uid_t kOther = 4000002;

TEST(ClientTenants, ShareNeitherMemoryNorKeys) {
  DaemonSettings settings;  // neither is this user's: it acts for both, as the daemon's operator
  settings.extra =
      "[[tenants]]\nname = \"a\"\nuids = [4000001]\n[[tenants]]\nname = \"b\"\nuids = [4000002]\n";
  DaemonProcess daemon(settings);
  const auto segment_of = [&](const std::string& tenant) -> std::pair<ino_t, Salt> {
    ConnectionOptions options;
    options.socket_path = daemon.socket_path();
    options.hello.tenant = tenant;
    const auto connection = Connection::Open(options);
    EXPECT_TRUE(connection.ok()) << connection.status();
    if (!connection.ok()) return {};
    const Welcome welcome = (*connection)->TakeWelcome();
    struct stat info {};
    EXPECT_EQ(fstat(welcome.segment_fd, &info), 0);
    for (const int fd : {welcome.segment_fd, welcome.board_fd, welcome.ready_event_fd}) close(fd);
    return {info.st_ino, welcome.salt};
  };
  const auto a = segment_of("a"), b = segment_of("b");
  EXPECT_NE(a.first, b.first);
  EXPECT_NE(a.second, b.second);
  EXPECT_EQ(a.first, segment_of("a").first);
  if (geteuid() == 0) {  // only root can be somebody else
    ASSERT_EQ(seteuid(kOther), 0);
    const auto of_other = segment_of("");
    ASSERT_EQ(seteuid(0), 0);
    EXPECT_EQ(of_other, b);
  }

  ClientOptions of_a = daemon.Options(), of_b = daemon.Options();
  of_a.tenant = "a";
  of_b.tenant = "b";
  const auto ours = Client::Connect(of_a), theirs = Client::Connect(of_b);
  ASSERT_TRUE(ours.ok() && theirs.ok());
  const auto our_model = (*ours)->RegisterKv(SmallGeometry());
  const auto their_model = (*theirs)->RegisterKv(SmallGeometry());
  const auto tokens = Prompt(256);
  StoreAll(**ours, *our_model, tokens);
  EXPECT_EQ((*theirs)->MatchPrefix(*their_model, tokens)->matched_tokens, 0u);
  // Not even by key.
  const ObjectKey key = (*ours)->MatchPrefix(*our_model, tokens)->chunks[0].key;
  EXPECT_TRUE(absl::IsNotFound((*theirs)->Show(key).status()));
}

TEST(ClientTenants, AUserOfOneMayNotNameAnother) {
  DaemonSettings settings;
  settings.extra = "[[tenants]]\nname = \"a\"\nuids = [" + std::to_string(geteuid()) +
                   "]\n[[tenants]]\nname = \"b\"\nuids = [4000002]\n";
  DaemonProcess daemon(settings);
  ClientOptions wrong = daemon.Options();
  wrong.tenant = "b";
  EXPECT_TRUE(absl::IsPermissionDenied(Client::Connect(wrong).status()));
}

TEST(ClientConnect, NobodyThereIsSaidWithThePath) {
  ClientOptions options;
  options.socket_path = "/var/tmp/terrace-no-such-socket";
  const absl::Status status = Client::Connect(options).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr(options.socket_path));
}

}  // namespace
}  // namespace terrace
