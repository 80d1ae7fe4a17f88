// What a client may send that it should not: only its own connection suffers.
#include <capnp/message.h>
#include <capnp/rpc.capnp.h>
#include <capnp/serialize.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <limits>
#include <random>

#include "tests/transport/fake_service.h"
#include "transport/terrace.capnp.h"
#include "transport/wire_codec.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// Sends everything, giving up when the peer closes.
void SendAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL);
    if (n <= 0) return;
    at += n;
    bytes -= n;
  }
}

void SendMessage(int fd, capnp::MessageBuilder& message) {
  auto words = capnp::messageToFlatArray(message);
  SendAll(fd, words.asBytes().begin(), words.asBytes().size());
}

// Reads until the peer closes; false when it did not within 5 s.
bool Closes(int fd) {
  timeval timeout{5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  char sink[65536];
  for (;;) {
    const ssize_t n = recv(fd, sink, sizeof sink, 0);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return true;
    if (n < 0) return false;
  }
}

uint64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

class HostilePeerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ServerOptions options;
    options.max_message_bytes = 1 << 20;
    options.max_keys_per_call = 100;
    host_ = std::make_unique<TestHost>(service_, options);
    auto good = host_->Connect();
    ASSERT_TRUE(good.ok()) << good.status();
    good_ = std::move(*good);
    fd_ = RawConnect(host_->socket_path());
  }
  void TearDown() override {
    EXPECT_TRUE(good_->Flush().ok());  // whatever happened, others are served
    close(fd_);
  }

  // Bootstrap (question 0) and a call of hello (question 1) on its promised answer.
  void SendHello() {
    capnp::MallocMessageBuilder bootstrap, call;
    bootstrap.initRoot<capnp::rpc::Message>().initBootstrap().setQuestionId(0);
    SendMessage(fd_, bootstrap);
    auto c = call.initRoot<capnp::rpc::Message>().initCall();
    c.setQuestionId(1);
    c.initTarget().initPromisedAnswer().setQuestionId(0);
    c.setInterfaceId(capnp::typeId<wire::Terrace>());
    c.setMethodId(0);
    auto hello = c.initParams().initContent().initAs<wire::Terrace::HelloParams>();
    hello.setProtocolMajor(kProtocolMajor);
    SendMessage(fd_, call);
  }
  // A lookup of `keys` on the session that hello answers.
  void SendLookup(uint32_t question, const std::vector<ObjectKey>& keys, bool finish) {
    capnp::MallocMessageBuilder call;
    auto c = call.initRoot<capnp::rpc::Message>().initCall();
    c.setQuestionId(question);
    auto promised = c.initTarget().initPromisedAnswer();
    promised.setQuestionId(1);
    promised.initTransform(1)[0].setGetPointerField(1);  // session
    c.setInterfaceId(capnp::typeId<wire::Session>());
    c.setMethodId(1);
    auto params = c.initParams().initContent().initAs<wire::Session::LookupParams>();
    params.setKeys(capnp::Data::Reader(reinterpret_cast<const kj::byte*>(keys.data()),
                                       keys.size() * sizeof(ObjectKey)));
    SendMessage(fd_, call);
    if (!finish) return;
    capnp::MallocMessageBuilder done;
    done.initRoot<capnp::rpc::Message>().initFinish().setQuestionId(question);
    SendMessage(fd_, done);
  }

  FakeService service_;
  std::unique_ptr<TestHost> host_;
  std::unique_ptr<Connection> good_;
  int fd_ = -1;
};

TEST_F(HostilePeerTest, GarbageEndsItsConnection) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<uint32_t> garbage(1 + random() % 4000);
    for (uint32_t& word : garbage) word = random();
    const int fd = RawConnect(host_->socket_path());
    SendAll(fd, garbage.data(), garbage.size() * sizeof garbage[0]);
    shutdown(fd, SHUT_WR);
    EXPECT_TRUE(Closes(fd)) << "round " << round;
    close(fd);
  }
}

TEST_F(HostilePeerTest, ATextProtocolEndsItsConnectionWithoutShutdown) {
  const std::string text = "GET / HTTP/1.1\r\nHost: terrace\r\n\r\n";
  SendAll(fd_, text.data(), text.size());
  EXPECT_TRUE(Closes(fd_));
}

TEST_F(HostilePeerTest, AHeaderThatAnnouncesTooMuchEndsItsConnection) {
  const uint32_t header[2] = {0, (64u << 20) / 8};
  SendAll(fd_, header, sizeof header);
  EXPECT_TRUE(Closes(fd_));
}

TEST_F(HostilePeerTest, ACallBeforeHelloIsAnError) {
  capnp::MallocMessageBuilder bootstrap;
  bootstrap.initRoot<capnp::rpc::Message>().initBootstrap().setQuestionId(0);
  SendMessage(fd_, bootstrap);
  capnp::MallocMessageBuilder call;
  auto c = call.initRoot<capnp::rpc::Message>().initCall();
  c.setQuestionId(1);
  c.initTarget().initPromisedAnswer().setQuestionId(0);
  c.setInterfaceId(capnp::typeId<wire::Session>());
  c.setMethodId(1);
  SendMessage(fd_, call);
  shutdown(fd_, SHUT_WR);
  EXPECT_TRUE(Closes(fd_));
  EXPECT_EQ(service_.lookup_count, 0);
}

TEST_F(HostilePeerTest, ASecondHelloOpensNoSecondSession) {
  SendHello();
  capnp::MallocMessageBuilder call;
  auto c = call.initRoot<capnp::rpc::Message>().initCall();
  c.setQuestionId(2);
  c.initTarget().initPromisedAnswer().setQuestionId(0);
  c.setInterfaceId(capnp::typeId<wire::Terrace>());
  c.setMethodId(0);
  c.initParams().initContent().initAs<wire::Terrace::HelloParams>().setProtocolMajor(
      kProtocolMajor);
  SendMessage(fd_, call);
  shutdown(fd_, SHUT_WR);
  EXPECT_TRUE(Closes(fd_));
  EXPECT_TRUE(Eventually([&] { return service_.close_count == 1; }));
  EXPECT_EQ(service_.open_count, 2);  // the good client's and this one's first
}

TEST_F(HostilePeerTest, TooManyKeysIsResourceExhaustedAndNamesTheLimit) {
  const std::vector<ObjectKey> keys(101);
  std::vector<ExtentInfo> extents;
  const absl::Status status = good_->Lookup(1, keys, extents);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("keys per call 101 exceeds limits.max_keys_per_call = 100"));
  EXPECT_EQ(good_->Reserve(1, std::vector<ReserveItem>(101)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(good_->Commit(std::vector<CommitItem>(101)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(good_->Abort(std::vector<uint64_t>(101)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(good_->Acquire(1, keys, {}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(service_.lookup_count, 0);
}

TEST_F(HostilePeerTest, AMessageOverTheLimitIsRefusedAndTheConnectionGoesOn) {
  std::vector<ExtentInfo> extents;
  const std::vector<ObjectKey> keys((2 << 20) / 32);
  const absl::Status status = good_->Lookup(1, keys, extents);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_message_bytes = 1048576"));
  EXPECT_TRUE(good_->alive());
}

TEST_F(HostilePeerTest, AnAnswerOverTheLimitIsAnErrorOfThatCall) {
  service_.extents.resize((2 << 20) / sizeof(ExtentInfo));
  std::vector<ExtentInfo> extents;
  EXPECT_FALSE(good_->Lookup(1, std::vector<ObjectKey>(1), extents).ok());
  EXPECT_TRUE(extents.empty());
}

TEST_F(HostilePeerTest, BadFieldsAreInvalidArgument) {
  EXPECT_EQ(good_->Acquire(1, {}, {0, 9}).status().code(), absl::StatusCode::kInvalidArgument);
  ObjectLayout layout;
  layout.kind = static_cast<ObjectKind>(77);
  layout.part_bytes_per_token = {1};
  const absl::Status kind = good_->RegisterLayout(layout).status();
  EXPECT_EQ(kind.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(kind.message()), HasSubstr("kind"));
  layout.kind = ObjectKind::kKv;
  layout.part_bytes_per_token.assign(kMaxParts, 64);
  const absl::Status parts = good_->RegisterLayout(layout).status();
  EXPECT_EQ(parts.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parts.message()), HasSubstr("part_bytes_per_token"));
  layout.part_bytes_per_token = {64, 0};
  EXPECT_EQ(good_->RegisterLayout(layout).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostilePeerTest, HintsAreBounded) {
  const auto refused = [this](HintItem hint) {
    const absl::Status status = good_->Hint({&hint, 1}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  HintItem hint;
  hint.confidence = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refused(hint), HasSubstr("hints.confidence: nan is not 0 .. 1"));
  hint.confidence = 1.01f;
  EXPECT_THAT(refused(hint), HasSubstr("hints.confidence"));
  hint.confidence = -0.01f;
  EXPECT_THAT(refused(hint), HasSubstr("hints.confidence"));
  hint = {};
  hint.eta_us = kMaxHintAheadUs + 1;
  EXPECT_THAT(refused(hint), HasSubstr("hints.eta_us: 86400000001 is not 0 .. 86400000000"));
  hint = {};
  hint.deadline_us = ~uint64_t{0};
  EXPECT_THAT(refused(hint), HasSubstr("hints.deadline_us"));
  hint = {};
  hint.kind = static_cast<HintKind>(5);
  EXPECT_THAT(refused(hint), HasSubstr("hints.kind: 5 is unknown"));
  const std::vector<ObjectKey> keys(51);
  hint.kind = HintKind::kWithdraw;
  hint.keys = keys;
  EXPECT_THAT(refused(hint), HasSubstr("hints.keys"));

  // The limit is on all keys of a call, and on its hints.
  hint.kind = HintKind::kQueue;
  absl::Status status = good_->Hint({{hint, hint}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("keys per call 102 exceeds limits.max_keys_per_call = 100"));
  status = good_->Hint(std::vector<HintItem>(101)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(service_.hint_count, 0);
}

TEST_F(HostilePeerTest, NamesOfTiersAndTenantsAreBounded) {
  const std::string longer(kMaxNameBytes + 1, 'x');
  EXPECT_THAT(std::string(good_->Resize({longer, "", 1}).status().message()),
              HasSubstr("tier: 257"));
  EXPECT_THAT(std::string(good_->Resize({"host", longer, 1}).status().message()),
              HasSubstr("tenant: 257"));
  EXPECT_EQ(good_->MissRatioCurve({longer, ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(good_->MissRatioCurve({"", longer}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HostilePeerTest, UnreadRepliesStopTheReadingNotTheDaemon) {
  service_.extents.resize(4096);  // 64 KiB an answer
  SendHello();
  const uint64_t before = ResidentBytes();
  // 400 MiB of answers are asked for and none is read. The sender must block.
  bool blocked = false;
  std::thread sender([&] {
    timeval timeout{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    const std::vector<ObjectKey> keys(32);
    capnp::MallocMessageBuilder probe;
    for (uint32_t i = 0; i < 6400; ++i) {
      SendLookup(2 + i, keys, /*finish=*/true);
      pollfd writable{fd_, POLLOUT, 0};
      if (poll(&writable, 1, 500) == 0) {
        blocked = true;
        return;
      }
    }
  });
  sender.join();
  EXPECT_TRUE(blocked);
  EXPECT_LT(service_.lookup_count, 400);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(ResidentBytes() - before, 64u << 20);
#else
  (void)before;
#endif
  EXPECT_TRUE(good_->Flush().ok());  // served while the other one is stuck
  close(fd_);
  EXPECT_TRUE(Eventually([&] { return service_.close_count == 1; }));
  fd_ = -1;
}

TEST_F(HostilePeerTest, CallsNeverFinishedEndTheConnection) {
  SendHello();
  for (uint32_t i = 0; i < 1000; ++i) SendLookup(2 + i, {}, /*finish=*/false);
  EXPECT_TRUE(Closes(fd_));
  EXPECT_TRUE(Eventually([&] { return service_.close_count == 1; }));
  EXPECT_LT(service_.lookup_count, 100);
}

TEST_F(HostilePeerTest, AHalfClosedClientIsAGoneClient) {
  SendHello();
  EXPECT_TRUE(Eventually([&] { return service_.open_count == 2; }));
  shutdown(fd_, SHUT_WR);  // and its descriptor stays open
  EXPECT_TRUE(Eventually([&] { return service_.close_count == 1; }));
}

TEST_F(HostilePeerTest, AFloodingClientDoesNotStarveOthers) {
  SendHello();
  std::atomic<bool> stop{false};
  std::thread reader([&] { Closes(fd_); });
  std::thread flood([&] {
    const std::vector<ObjectKey> keys(100);
    for (uint32_t i = 2; !stop; ++i) SendLookup(i, keys, /*finish=*/true);
  });
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(good_->Flush().ok());
  stop = true;
  flood.join();
  shutdown(fd_, SHUT_WR);
  reader.join();
}

}  // namespace
}  // namespace terrace
