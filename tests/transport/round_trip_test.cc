// Every call over a real socket: all fields arrive, both ways, and statuses survive exactly.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>

#include "tests/transport/fake_service.h"

namespace terrace {
namespace {

class RoundTripTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto connection = host_.Connect();
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = std::move(*connection);
  }

  FakeService service_;
  TestHost host_{service_};
  std::unique_ptr<Connection> connection_;
};

TEST_F(RoundTripTest, HelloCarriesEverything) {
  EXPECT_EQ(service_.hello.client_name, "transport_test");
  EXPECT_EQ(service_.hello.tenant, "tenant-a");
  EXPECT_EQ(service_.hello.protocol_major, kProtocolMajor);
  EXPECT_EQ(service_.peer.uid, getuid());
  EXPECT_EQ(service_.peer.pid, getpid());
  const Welcome w = connection_->TakeWelcome();
  EXPECT_EQ(w.server_version, "1.2.3-test");
  EXPECT_EQ(w.features, (std::vector<std::string>{"tail", "verify"}));
  EXPECT_EQ(w.session_id, 1u);
  EXPECT_EQ(w.tenant, "tenant-a");
  EXPECT_EQ(w.salt, service_.welcome.salt);
  EXPECT_EQ(w.verify, VerifyMode::kAlways);
  EXPECT_EQ(w.max_keys_per_call, 4096u);
  EXPECT_EQ(w.default_lease_ttl_ms, 30000u);
  EXPECT_EQ(w.max_lease_ttl_ms, uint64_t{1} << 40);
  EXPECT_EQ(w.host_capacity_bytes, 1u << 20);
  EXPECT_EQ(w.board_slots, 77u);

  // The three descriptors are the daemon's own files, each in its place, and close-on-exec.
  ASSERT_GE(w.segment_fd, 0);
  ASSERT_GE(w.board_fd, 0);
  ASSERT_GE(w.ready_event_fd, 0);
  ASSERT_EQ(pwrite(service_.welcome.segment_fd, "segment", 7, 100), 7);
  ASSERT_EQ(pwrite(service_.welcome.board_fd, "board", 5, 0), 5);
  auto* segment = static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, w.segment_fd, 0));
  auto* board = static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, w.board_fd, 0));
  ASSERT_NE(segment, MAP_FAILED);
  ASSERT_NE(board, MAP_FAILED);
  EXPECT_STREQ(segment + 100, "segment");
  EXPECT_STREQ(board, "board");
  uint64_t count = 3;
  ASSERT_EQ(write(service_.welcome.ready_event_fd, &count, sizeof count), 8);
  count = 0;
  ASSERT_EQ(read(w.ready_event_fd, &count, sizeof count), 8);
  EXPECT_EQ(count, 3u);
  for (int fd : {w.segment_fd, w.board_fd, w.ready_event_fd}) {
    EXPECT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    close(fd);
  }
  munmap(segment, 4096);
  munmap(board, 4096);
  EXPECT_EQ(connection_->TakeWelcome().segment_fd, -1);  // once
}

TEST_F(RoundTripTest, RegisterLayout) {
  ObjectLayout layout;
  for (size_t i = 0; i < layout.fingerprint.size(); ++i) layout.fingerprint[i] = i * 3;
  layout.kind = ObjectKind::kExpert;
  layout.part_bytes_per_token = {64, 128, 4096};
  auto id = connection_->RegisterLayout(layout);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(*id, 42u);
  EXPECT_EQ(service_.layout.fingerprint, layout.fingerprint);
  EXPECT_EQ(service_.layout.kind, ObjectKind::kExpert);
  EXPECT_EQ(service_.layout.part_bytes_per_token, layout.part_bytes_per_token);
}

TEST_F(RoundTripTest, LookupAppends) {
  service_.extents = {{uint64_t{1} << 33, 77, 256, TierId::kHost, kFlagDurable},
                      {4096, 1u << 31, 16, TierId::kNvme, kFlagPinned}};
  std::vector<ExtentInfo> extents(1);
  const std::vector<ObjectKey> keys = {TestKey(1), TestKey(2), TestKey(3)};
  ASSERT_TRUE(connection_->Lookup(7, keys, extents).ok());
  EXPECT_EQ(service_.layout_id, 7u);
  EXPECT_EQ(service_.keys, keys);
  ASSERT_EQ(extents.size(), 3u);
  EXPECT_EQ(extents[1].bytes, uint64_t{1} << 33);
  EXPECT_EQ(extents[1].eta_us, 77u);
  EXPECT_EQ(extents[1].token_count, 256);
  EXPECT_EQ(extents[1].tier, TierId::kHost);
  EXPECT_EQ(extents[1].flags, kFlagDurable);
  EXPECT_EQ(extents[2].tier, TierId::kNvme);
  EXPECT_EQ(extents[2].eta_us, 1u << 31);
  EXPECT_EQ(extents[2].flags, kFlagPinned);
}

TEST_F(RoundTripTest, FindAnswersEveryKey) {
  const std::vector<ObjectKey> keys(2);
  service_.extents = {{1, 2, 3, TierId::kHost, 0}, {0, 0, 0, TierId::kNone, 0}};
  std::vector<ExtentInfo> extents;
  ASSERT_TRUE(connection_->Find(7, keys, extents).ok());
  ASSERT_EQ(extents.size(), 2u);
  EXPECT_EQ(extents[0].bytes, 1u);
  EXPECT_EQ(extents[1].tier, TierId::kNone);
  EXPECT_EQ(service_.layout_id, 7u);
  // An answer too few could be of any of the keys.
  service_.extents.pop_back();
  EXPECT_EQ(connection_->Find(7, keys, extents).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(extents.size(), 2u);
}

TEST_F(RoundTripTest, LookupOfNothingAndOfNothingFound) {
  std::vector<ExtentInfo> extents;
  ASSERT_TRUE(connection_->Lookup(1, {}, extents).ok());
  const std::vector<ObjectKey> keys = {TestKey(1)};
  ASSERT_TRUE(connection_->Lookup(1, keys, extents).ok());
  EXPECT_TRUE(extents.empty());
}

TEST_F(RoundTripTest, MatchTail) {
  service_.match = {true, TestKey(9), 3, 5, {999, 8, 80, TierId::kNvme, kFlagDurable}};
  const std::vector<ObjectKey> grains = {TestKey(4), TestKey(5)};
  auto match = connection_->MatchTail(3, TestKey(8), grains);
  ASSERT_TRUE(match.ok()) << match.status();
  EXPECT_EQ(service_.parent, TestKey(8));
  EXPECT_EQ(service_.keys, grains);
  EXPECT_TRUE(match->found);
  EXPECT_EQ(match->key, TestKey(9));
  EXPECT_EQ(match->matched_grains, 3u);
  EXPECT_EQ(match->grain_count, 5u);
  EXPECT_EQ(match->info.bytes, 999u);
  EXPECT_EQ(match->info.token_count, 80);

  service_.match = {};
  match = connection_->MatchTail(3, ObjectKey{}, grains);
  ASSERT_TRUE(match.ok());
  EXPECT_FALSE(match->found);
  EXPECT_TRUE(service_.parent.IsZero());
}

TEST_F(RoundTripTest, Reserve) {
  service_.reserve_results = {{absl::OkStatus(), 11, 1 << 20, 0},
                              {absl::AlreadyExistsError("stored"), 0, 0, 0},
                              {absl::ResourceExhaustedError("full"), 0, 0, 25}};
  const std::vector<ReserveItem> items = {{TestKey(1), ObjectKey{}, 256, 16, 1000},
                                          {TestKey(2), TestKey(1), 48, 3, 0},
                                          {TestKey(3), TestKey(2), 1, 0, 9}};
  auto results = connection_->Reserve(5, items);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(service_.reserve_items.size(), 3u);
  for (size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(service_.reserve_items[i].key, items[i].key);
    EXPECT_EQ(service_.reserve_items[i].parent, items[i].parent);
    EXPECT_EQ(service_.reserve_items[i].token_count, items[i].token_count);
    EXPECT_EQ(service_.reserve_items[i].grain_count, items[i].grain_count);
    EXPECT_EQ(service_.reserve_items[i].cost_us, items[i].cost_us);
    EXPECT_EQ((*results)[i].status, service_.reserve_results[i].status);
  }
  EXPECT_EQ((*results)[0].reservation_id, 11u);
  EXPECT_EQ((*results)[0].offset, 1u << 20);
  EXPECT_EQ((*results)[2].retry_after_ms, 25u);
}

TEST_F(RoundTripTest, CommitAndAbort) {
  service_.commit_results = {absl::OkStatus(), absl::DataLossError("part 3: checksum")};
  const std::vector<CommitItem> items = {{1, {1, 2, 3}, {}}, {2, {0xffffffff}, {7, 8}}};
  auto results = connection_->Commit(items);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ(*results, service_.commit_results);
  ASSERT_EQ(service_.commit_items.size(), 2u);
  EXPECT_EQ(service_.commit_items[0].part_crcs, items[0].part_crcs);
  EXPECT_TRUE(service_.commit_items[0].grain_filters.empty());
  EXPECT_EQ(service_.commit_items[1].reservation_id, 2u);
  EXPECT_EQ(service_.commit_items[1].grain_filters, items[1].grain_filters);

  const std::vector<uint64_t> ids = {5, uint64_t{1} << 63};
  ASSERT_TRUE(connection_->Abort(ids).ok());
  EXPECT_EQ(service_.ids, ids);
}

TEST_F(RoundTripTest, AcquireRenewRelease) {
  service_.acquire_reply.lease_id = 99;
  service_.acquire_reply.deadline_us = uint64_t{1} << 60;
  service_.acquire_reply.results = {
      {absl::OkStatus(), 4096, 1 << 22, 256, 16, 12, TierId::kHost, 0, {1, 2, 0xdeadbeef}},
      {absl::ResourceExhaustedError("growing"), 0, 0, 0, 0, 0, TierId::kNone, 5, {}}};
  const std::vector<ObjectKey> keys = {TestKey(1), TestKey(2)};
  auto reply = connection_->Acquire(2, keys, {1500, 3});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(service_.keys, keys);
  EXPECT_EQ(service_.acquire_options.ttl_ms, 1500u);
  EXPECT_EQ(service_.acquire_options.priority, 3);
  EXPECT_EQ(reply->lease_id, 99u);
  EXPECT_EQ(reply->deadline_us, uint64_t{1} << 60);
  ASSERT_EQ(reply->results.size(), 2u);
  EXPECT_EQ(reply->results[0].offset, 4096u);
  EXPECT_EQ(reply->results[0].payload_bytes, 1u << 22);
  EXPECT_EQ(reply->results[0].token_count, 256u);
  EXPECT_EQ(reply->results[0].grain_count, 16u);
  EXPECT_EQ(reply->results[0].board_slot, 12u);
  EXPECT_EQ(reply->results[0].source, TierId::kHost);
  EXPECT_EQ(reply->results[0].part_crcs, (std::vector<uint32_t>{1, 2, 0xdeadbeef}));
  EXPECT_EQ(reply->results[1].status, absl::ResourceExhaustedError("growing"));
  EXPECT_EQ(reply->results[1].retry_after_ms, 5u);

  auto deadline = connection_->Renew(99, 700);
  ASSERT_TRUE(deadline.ok());
  EXPECT_EQ(*deadline, uint64_t{1} << 50);
  EXPECT_EQ(service_.ids, (std::vector<uint64_t>{99, 700}));
  const std::vector<uint64_t> leases = {99};
  ASSERT_TRUE(connection_->Release(leases).ok());
  ASSERT_TRUE(connection_->Flush().ok());  // release is not waited for, but calls keep their order
  EXPECT_EQ(service_.ids, leases);
}

TEST_F(RoundTripTest, OperatorsCalls) {
  service_.flush_reply = {3, uint64_t{1} << 35};
  auto flush = connection_->Flush();
  ASSERT_TRUE(flush.ok());
  EXPECT_EQ(flush->pending_objects, 3u);
  EXPECT_EQ(flush->pending_bytes, uint64_t{1} << 35);

  ObjectInfo object;
  object.key = TestKey(1);
  object.parent = TestKey(2);
  object.fingerprint.fill(7);
  object.kind = ObjectKind::kDocument;
  object.token_count = 256;
  object.grain_count = 16;
  object.cost_us = 5;
  object.part_count = 61;
  object.payload_bytes = 1 << 25;
  object.in_nvme = object.pinned = true;
  object.lease_count = 2;
  service_.object = object;
  auto shown = connection_->Show(TestKey(1));
  ASSERT_TRUE(shown.ok()) << shown.status();
  EXPECT_EQ(service_.keys, std::vector<ObjectKey>{TestKey(1)});
  EXPECT_EQ(shown->parent, object.parent);
  EXPECT_EQ(shown->fingerprint, object.fingerprint);
  EXPECT_EQ(shown->kind, ObjectKind::kDocument);
  EXPECT_EQ(shown->part_count, 61u);
  EXPECT_EQ(shown->payload_bytes, 1u << 25);
  EXPECT_FALSE(shown->in_host);
  EXPECT_TRUE(shown->in_nvme);
  EXPECT_TRUE(shown->pinned);
  EXPECT_EQ(shown->lease_count, 2u);

  service_.list_reply.objects = {object, object};
  service_.list_reply.next_cursor = 17;
  auto list = connection_->List(16, 100);
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(service_.ids, (std::vector<uint64_t>{16, 100}));
  ASSERT_EQ(list->objects.size(), 2u);
  EXPECT_EQ(list->objects[1].key, object.key);
  EXPECT_EQ(list->objects[1].cost_us, 5u);
  EXPECT_EQ(list->next_cursor, 17u);

  EXPECT_TRUE(connection_->Remove(TestKey(6)).ok());
  EXPECT_EQ(service_.keys, std::vector<ObjectKey>{TestKey(6)});
  EXPECT_TRUE(connection_->Pin(TestKey(7), true).ok());
  EXPECT_TRUE(service_.flag);

  service_.verify_reply = {5, 4, 1, 2, 1000, {TestKey(3)}};
  auto verify = connection_->Verify(8);
  ASSERT_TRUE(verify.ok());
  EXPECT_EQ(service_.number, 8u);
  EXPECT_EQ(verify->next_cursor, 5u);
  EXPECT_EQ(verify->checked, 4u);
  EXPECT_EQ(verify->corrupt, 1u);
  EXPECT_EQ(verify->skipped, 2u);
  EXPECT_EQ(verify->bytes, 1000u);
  EXPECT_EQ(verify->corrupt_keys, std::vector<ObjectKey>{TestKey(3)});
}

TEST_F(RoundTripTest, Hint) {
  service_.hint_results = {{absl::OkStatus(), 2},
                           {absl::NotFoundError("request 8"), 0},
                           {absl::ResourceExhaustedError("limits"), 1}};
  const std::vector<ObjectKey> keys = {TestKey(1), TestKey(2), TestKey(3), TestKey(4)};
  const auto all = absl::MakeConstSpan(keys);
  const std::vector<HintItem> hints = {
      {HintKind::kDocuments, uint64_t{1} << 63, 7, kMaxHintAheadUs, 12345, 0.25f, 3, all.first(2)},
      {HintKind::kWithdraw, 8, 0, 0, 0, 1, 0, {}},
      {HintKind::kExperts, 9, 0xffffffffu, 0, kMaxHintAheadUs, 0, 4, all.subspan(2)}};
  auto results = connection_->Hint(hints);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(service_.hints.size(), hints.size());
  for (size_t i = 0; i < hints.size(); ++i) {
    const HintItem& got = service_.hints[i];
    EXPECT_EQ(got.kind, hints[i].kind);
    EXPECT_EQ(got.request_id, hints[i].request_id);
    EXPECT_EQ(got.order, hints[i].order);
    EXPECT_EQ(got.eta_us, hints[i].eta_us);
    EXPECT_EQ(got.deadline_us, hints[i].deadline_us);
    EXPECT_EQ(got.confidence, hints[i].confidence);
    EXPECT_EQ(got.layout_id, hints[i].layout_id);
    EXPECT_EQ(absl::MakeConstSpan(service_.hint_keys[i]), hints[i].keys);
    EXPECT_EQ((*results)[i].status, service_.hint_results[i].status);
    EXPECT_EQ((*results)[i].accepted, service_.hint_results[i].accepted);
  }
  service_.hint_results.clear();
  EXPECT_TRUE(connection_->Hint({}).ok());
  EXPECT_EQ(connection_->Hint(hints).status().code(), absl::StatusCode::kInternal);  // results lack
}

TEST_F(RoundTripTest, Resize) {
  service_.resize_reply = {uint64_t{5} << 30, uint64_t{6} << 30, true, 77};
  auto reply = connection_->Resize({"host", "tenant-a", uint64_t{6} << 30});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(service_.resize_request.tier, "host");
  EXPECT_EQ(service_.resize_request.tenant, "tenant-a");
  EXPECT_EQ(service_.resize_request.bytes, uint64_t{6} << 30);
  EXPECT_EQ(reply->current_bytes, uint64_t{5} << 30);
  EXPECT_EQ(reply->target_bytes, uint64_t{6} << 30);
  EXPECT_TRUE(reply->done);
  EXPECT_EQ(reply->held_by_leases_bytes, 77u);
}

TEST_F(RoundTripTest, MissRatioCurve) {
  service_.curve_reply.points = {{0, 1, 1}, {uint64_t{1} << 33, 0.5f, 0.25f}};
  service_.curve_reply.accesses = uint64_t{1} << 40;
  service_.curve_reply.sampled = 1000;
  service_.curve_reply.capacities = {{"host", 1 << 30}, {"nvme", uint64_t{1} << 40}};
  service_.curve_reply.accesses_per_hour = 3600.5;
  service_.curve_reply.hit_saves_us = 1234.5;
  auto reply = connection_->MissRatioCurve({"nvme", "tenant-b"});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(service_.curve_query.tier, "nvme");
  EXPECT_EQ(service_.curve_query.tenant, "tenant-b");
  ASSERT_EQ(reply->points.size(), 2u);
  EXPECT_EQ(reply->points[1].bytes, uint64_t{1} << 33);
  EXPECT_EQ(reply->points[1].by_accesses, 0.5f);
  EXPECT_EQ(reply->points[1].by_bytes, 0.25f);
  EXPECT_EQ(reply->accesses, uint64_t{1} << 40);
  EXPECT_EQ(reply->sampled, 1000u);
  EXPECT_EQ(reply->accesses_per_hour, 3600.5);
  EXPECT_EQ(reply->hit_saves_us, 1234.5);
  ASSERT_EQ(reply->capacities.size(), 2u);
  EXPECT_EQ(reply->capacities[1].tier, "nvme");
  EXPECT_EQ(reply->capacities[1].bytes, uint64_t{1} << 40);
}

TEST_F(RoundTripTest, StatusCarriesEverything) {
  StatusReply& from = service_.status_reply;
  from.version = "v";
  from.pid = 12;
  from.uptime_ms = 34;
  from.socket_path = "/s";
  from.state_dir = "/d";
  from.verify = VerifyMode::kAlways;
  from.tiers = {{"host", "huge pages", 1, 2, 3, 4, 5}, {"nvme", "io_uring", 6, 7, 8, 9, 10}};
  from.sessions = {{1, 2, 3, "client", "tenant", 4, 5, 6}};
  from.objects = 7;
  from.leases = 8;
  from.reservations = 9;
  from.counters = {{"lookup_hits", 1}, {"lookup_misses", uint64_t{1} << 60}};
  auto reply = connection_->Status();
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->version, "v");
  EXPECT_EQ(reply->pid, 12);
  EXPECT_EQ(reply->uptime_ms, 34u);
  EXPECT_EQ(reply->socket_path, "/s");
  EXPECT_EQ(reply->state_dir, "/d");
  EXPECT_EQ(reply->verify, VerifyMode::kAlways);
  ASSERT_EQ(reply->tiers.size(), 2u);
  EXPECT_EQ(reply->tiers[1].name, "nvme");
  EXPECT_EQ(reply->tiers[1].detail, "io_uring");
  EXPECT_EQ(reply->tiers[1].capacity_bytes, 6u);
  EXPECT_EQ(reply->tiers[1].used_bytes, 7u);
  EXPECT_EQ(reply->tiers[1].objects, 8u);
  EXPECT_EQ(reply->tiers[1].populated_bytes, 9u);
  EXPECT_EQ(reply->tiers[1].huge_page_bytes, 10u);
  ASSERT_EQ(reply->sessions.size(), 1u);
  EXPECT_EQ(reply->sessions[0].pid, 2);
  EXPECT_EQ(reply->sessions[0].uid, 3u);
  EXPECT_EQ(reply->sessions[0].client_name, "client");
  EXPECT_EQ(reply->sessions[0].tenant, "tenant");
  EXPECT_EQ(reply->sessions[0].leases, 4u);
  EXPECT_EQ(reply->sessions[0].reservations, 5u);
  EXPECT_EQ(reply->sessions[0].age_ms, 6u);
  EXPECT_EQ(reply->objects, 7u);
  EXPECT_EQ(reply->leases, 8u);
  EXPECT_EQ(reply->reservations, 9u);
  EXPECT_EQ(reply->counters, from.counters);
}

TEST_F(RoundTripTest, EveryStatusCodeSurvivesEveryCall) {
  const std::vector<ObjectKey> keys = {TestKey(1)};
  ObjectLayout layout;
  layout.part_bytes_per_token = {64};
  for (int code = 1; code <= 16; ++code) {
    const absl::Status want(static_cast<absl::StatusCode>(code), "why: key 01\nnvme");
    service_.failure = want;
    std::vector<ExtentInfo> extents;
    EXPECT_EQ(connection_->RegisterLayout(layout).status(), want);
    EXPECT_EQ(connection_->Lookup(1, keys, extents), want);
    EXPECT_EQ(connection_->MatchTail(1, keys[0], keys).status(), want);
    EXPECT_EQ(connection_->Reserve(1, {}).status(), want);
    EXPECT_EQ(connection_->Commit({}).status(), want);
    EXPECT_EQ(connection_->Abort({}), want);
    EXPECT_EQ(connection_->Acquire(1, keys, {}).status(), want);
    EXPECT_TRUE(connection_->Release({}).ok());  // not waited for
    EXPECT_EQ(connection_->Renew(1, 1).status(), want);
    EXPECT_EQ(connection_->Flush().status(), want);
    EXPECT_EQ(connection_->Status().status(), want);
    EXPECT_EQ(connection_->List(0, 1).status(), want);
    EXPECT_EQ(connection_->Show(keys[0]).status(), want);
    EXPECT_EQ(connection_->Remove(keys[0]), want);
    EXPECT_EQ(connection_->Pin(keys[0], false), want);
    EXPECT_EQ(connection_->Verify(0).status(), want);
    EXPECT_EQ(connection_->Hint({}).status(), want);
    EXPECT_EQ(connection_->Resize({}).status(), want);
    EXPECT_EQ(connection_->MissRatioCurve({}).status(), want);
  }
  EXPECT_TRUE(connection_->alive());  // the daemon's own Unavailable is no broken connection
}

TEST_F(RoundTripTest, AnExceptionInTheServiceIsTheCallsErrorOnly) {
  service_.on_lookup = [] { throw std::runtime_error("boom"); };
  std::vector<ExtentInfo> extents;
  EXPECT_EQ(connection_->Lookup(1, {}, extents).code(), absl::StatusCode::kInternal);
  service_.on_lookup = nullptr;
  EXPECT_TRUE(connection_->Lookup(1, {}, extents).ok());
}

TEST_F(RoundTripTest, EightThreadsShareOneConnection) {
  service_.extents = {{1, 2, 3, TierId::kHost, 0}};
  const std::vector<ObjectKey> keys = {TestKey(1)};
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        std::vector<ExtentInfo> extents;
        if (connection_->Lookup(1, keys, extents).ok() && extents.size() == 1) ++good;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 8 * 200);
}

TEST_F(RoundTripTest, AThreadMayAlternateBetweenConnections) {
  auto other = host_.Connect();
  ASSERT_TRUE(other.ok());
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(connection_->Flush().ok());
    EXPECT_TRUE((*other)->Flush().ok());
  }
  // And end on another thread than the one that began.
  std::thread([&] { other->reset(); }).join();
  EXPECT_TRUE(connection_->Flush().ok());
}

}  // namespace
}  // namespace terrace
