// Connections and sessions over their life: who may connect, and what ends with whom.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/transport/fake_service.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

absl::Status OpenAt(const std::string& path, ClientHello hello = {}) {
  ConnectionOptions options;
  options.socket_path = path;
  options.hello = hello;
  return Connection::Open(options).status();
}

TEST(ServerLifetimeTest, AbsentSocketIsNotFound) {
  const std::string path = TestDirectory() + "/absent";
  const absl::Status status = OpenAt(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

TEST(ServerLifetimeTest, SocketPathTooLongIsInvalid) {
  EXPECT_EQ(OpenAt(std::string(200, 'x')).code(), absl::StatusCode::kInvalidArgument);
  FakeService service;
  Loop loop;
  ServerOptions options;
  options.socket_path = "/tmp/" + std::string(200, 'x');
  EXPECT_EQ(Server::Listen(loop, options, service).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ServerLifetimeTest, StaleSocketIsUnavailableToClientsAndReplacedByAServer) {
  const std::string path = TestDirectory() + "/s";
  const pid_t child = fork();
  if (child == 0) {  // leaves its socket file behind
    FakeService service;
    Loop loop;
    ServerOptions options;
    options.socket_path = path;
    auto server = Server::Listen(loop, options, service);
    _exit(server.ok() ? 0 : 1);
  }
  int child_status = 0;
  ASSERT_EQ(waitpid(child, &child_status, 0), child);
  ASSERT_EQ(child_status, 0);
  ASSERT_TRUE(std::filesystem::exists(path));
  EXPECT_EQ(OpenAt(path).code(), absl::StatusCode::kUnavailable);

  FakeService service;
  ServerOptions options;
  options.socket_path = path;
  TestHost host(service, options);
  EXPECT_TRUE(OpenAt(path).ok());
}

TEST(ServerLifetimeTest, ASecondServerIsRefusedAndTheFirstGoesOn) {
  FakeService service;
  TestHost host(service);
  {
    Loop loop;
    ServerOptions options;
    options.socket_path = host.socket_path();
    const absl::Status status = Server::Listen(loop, options, service).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(host.socket_path()));
  }
  EXPECT_TRUE(OpenAt(host.socket_path()).ok());
}

TEST(ServerLifetimeTest, AFileThatIsNoSocketIsLeftAlone) {
  const std::string path = TestDirectory() + "/file";
  std::ofstream(path) << "precious";
  FakeService service;
  Loop loop;
  ServerOptions options;
  options.socket_path = path;
  EXPECT_EQ(Server::Listen(loop, options, service).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::filesystem::file_size(path), 8u);
}

TEST(ServerLifetimeTest, TheSocketHasItsModeAndDirectoryAndGoesWithTheServer) {
  FakeService service;
  ServerOptions options;
  options.socket_path = TestDirectory() + "/a/b/s";
  TestHost host(service, options);
  struct stat info;
  ASSERT_EQ(stat(options.socket_path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0666u);
  host.Stop();
  EXPECT_FALSE(std::filesystem::exists(options.socket_path));
}

TEST(ServerLifetimeTest, ProtocolMismatchIsFailedPrecondition) {
  FakeService service;
  TestHost host(service);
  ClientHello hello;
  hello.protocol_major = kProtocolMajor + 1;
  const absl::Status status = OpenAt(host.socket_path(), hello);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("protocol"));
  hello.protocol_major = kProtocolMajor;
  hello.protocol_minor = kProtocolMinor + 5;  // may differ
  EXPECT_TRUE(OpenAt(host.socket_path(), hello).ok());
  host.Stop();
  EXPECT_EQ(service.open_count, 1);  // the refused one never reached the service
  EXPECT_EQ(service.close_count, 1);
}

TEST(ServerLifetimeTest, RefusalsOfTheServiceArriveAsTheyAre) {
  FakeService service;
  service.open_failure = absl::PermissionDeniedError("uid 7 is of no tenant");
  TestHost host(service);
  EXPECT_EQ(OpenAt(host.socket_path()), service.open_failure);
  host.Stop();
  EXPECT_EQ(service.close_count, 0);  // nothing was opened
}

TEST(ServerLifetimeTest, OverlongNamesAreInvalid) {
  FakeService service;
  TestHost host(service);
  ClientHello hello;
  hello.client_name = std::string(5000, 'n');
  const absl::Status status = OpenAt(host.socket_path(), hello);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("client_name"));
}

TEST(ServerLifetimeTest, CloseSessionComesOnceForEachSession) {
  FakeService service;
  TestHost host(service);
  {
    auto a = host.Connect(), b = host.Connect();
    ASSERT_TRUE(a.ok() && b.ok());
    a->reset();
    EXPECT_TRUE(Eventually([&] { return service.close_count == 1; }));
    EXPECT_TRUE((*b)->Flush().ok());
  }
  EXPECT_TRUE(Eventually([&] { return service.close_count == 2; }));
  auto c = host.Connect();
  host.Stop();  // closes what is still open
  EXPECT_EQ(service.closed, (std::map<SessionId, int>{{1, 1}, {2, 1}, {3, 1}}));
}

TEST(ServerLifetimeTest, AKilledClientIsNoticedAtOnce) {
  FakeService service;
  TestHost host(service);
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto connection = host.Connect();
    const char ok = connection.ok() && (*connection)->Flush().ok() ? 'y' : 'n';
    (void)!write(ready[1], &ok, 1);
    pause();
    _exit(0);
  }
  char ok = 0;
  ASSERT_EQ(read(ready[0], &ok, 1), 1);
  ASSERT_EQ(ok, 'y');
  ASSERT_EQ(service.close_count, 0);
  kill(child, SIGKILL);
  EXPECT_TRUE(Eventually([&] { return service.close_count == 1; }));
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
}

TEST(ServerLifetimeTest, ManyConnectionsAndOneTooMany) {
  FakeService service;
  ServerOptions options;
  options.max_connections = 40;
  TestHost host(service, options);
  std::vector<std::unique_ptr<Connection>> open;
  for (int i = 0; i < 40; ++i) {
    auto connection = host.Connect();
    ASSERT_TRUE(connection.ok()) << connection.status();
    open.push_back(std::move(*connection));
  }
  const absl::Status refused = host.Connect().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("max_connections = 40"));
  for (auto& connection : open) EXPECT_TRUE(connection->Flush().ok());
  open.pop_back();
  EXPECT_TRUE(Eventually([&] { return host.Connect().ok(); }));
}

TEST(ServerLifetimeTest, AServerThatGoesAwayIsUnavailableForGood) {
  FakeService service;
  TestHost host(service);
  auto connection = host.Connect();
  ASSERT_TRUE(connection.ok());
  EXPECT_TRUE((*connection)->alive());
  host.Stop();
  EXPECT_FALSE((*connection)->alive());
  EXPECT_EQ((*connection)->Flush().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*connection)->Flush().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE((*connection)->alive());
}

TEST(ServerLifetimeTest, AServerThatDiesDuringACallIsUnavailable) {
  const std::string path = TestDirectory() + "/s";
  const pid_t child = fork();
  if (child == 0) {
    FakeService service;
    service.on_lookup = [] { kill(getpid(), SIGKILL); };
    Loop loop;
    ServerOptions options;
    options.socket_path = path;
    auto server = Server::Listen(loop, options, service);
    loop.Run();
    _exit(1);
  }
  std::unique_ptr<Connection> connection;
  ConnectionOptions options;
  options.socket_path = path;
  ASSERT_TRUE(Eventually([&] {
    auto opened = Connection::Open(options);
    if (opened.ok()) connection = std::move(*opened);
    return opened.ok();
  }));
  std::vector<ExtentInfo> extents;
  EXPECT_EQ(connection->Lookup(1, {}, extents).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(connection->alive());
  waitpid(child, nullptr, 0);
}

TEST(ServerLifetimeTest, ACallWithoutAnswerTimesOutAndEndsTheConnection) {
  const std::string path = TestDirectory() + "/s";
  FakeService service;
  std::promise<void> release;
  auto released = release.get_future().share();
  ServerOptions options;
  options.socket_path = path;
  TestHost host(service, options);
  auto connection = host.Connect(/*timeout_ms=*/200);
  ASSERT_TRUE(connection.ok());
  host.OnLoop([&] { service.on_lookup = [released] { released.wait(); }; });
  std::vector<ExtentInfo> extents;
  const absl::Status status = (*connection)->Lookup(1, {}, extents);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("200 ms"));
  EXPECT_FALSE((*connection)->alive());
  EXPECT_EQ((*connection)->Flush().status().code(), absl::StatusCode::kUnavailable);
  release.set_value();
  EXPECT_TRUE(Eventually([&] { return service.close_count == 1; }));
}

}  // namespace
}  // namespace terrace
