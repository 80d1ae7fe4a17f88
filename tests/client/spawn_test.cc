// Client::Spawn: the embedded private daemon.
#include <gmock/gmock.h>
#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/client/kv_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class SpawnTest : public testing::Test {
 protected:
  SpawnTest() {
    std::string pattern = "/var/tmp/terrace-spawn-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    unsetenv("TERRACED");
  }
  ~SpawnTest() override { std::filesystem::remove_all(directory_); }
  SpawnOptions Options() const {
    SpawnOptions options;
    options.directory = directory_ + "/private";
    options.daemon_path = TERRACED_PATH;
    options.host_capacity_bytes = uint64_t{16} << 20;
    options.nvme_capacity_bytes = uint64_t{256} << 20;
    options.client.call_timeout_ms = 60000;
    options.start_timeout_ms = 60000;
    return options;
  }
  std::string directory_;
};

TEST_F(SpawnTest, StartsOneAndEndsItAndKeepsWhatWasStored) {
  const auto tokens = Prompt(600);
  int32_t pid = 0;
  {
    auto client = Client::Spawn(Options());
    ASSERT_TRUE(client.ok()) << client.status();
    pid = (*client)->spawned_pid();
    ASSERT_GT(pid, 0);
    EXPECT_EQ(kill(pid, 0), 0);
    const auto model = (*client)->RegisterKv(SmallGeometry());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(StoreAll(**client, *model, tokens).stored, 3u);
  }
  EXPECT_NE(kill(pid, 0), 0);
  auto client = Client::Spawn(Options());
  ASSERT_TRUE(client.ok()) << client.status();
  const auto model = (*client)->RegisterKv(SmallGeometry());
  EXPECT_EQ(LoadAll(**client, *model, tokens), 592u);
}

TEST_F(SpawnTest, ASecondOneJoinsTheDaemonAndDoesNotEndIt) {
  auto first = Client::Spawn(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  {
    auto second = Client::Spawn(Options());
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_EQ((*second)->spawned_pid(), 0);
    EXPECT_EQ((*second)->Status()->pid, (*first)->spawned_pid());
  }
  EXPECT_TRUE((*first)->Status().ok());
  (*first)->Close();
  EXPECT_TRUE(absl::IsUnavailable((*first)->Status().status()));
}

TEST_F(SpawnTest, OfManyAtOnceOneStartsIt) {
  std::vector<absl::StatusOr<std::unique_ptr<Client>>> clients(4);
  std::vector<std::thread> threads;
  for (auto& client : clients) {
    threads.emplace_back([&] { client = Client::Spawn(Options()); });
  }
  for (std::thread& thread : threads) thread.join();
  int owners = 0;
  for (const auto& client : clients) {
    ASSERT_TRUE(client.ok()) << client.status();
    owners += (*client)->spawned_pid() != 0 ? 1 : 0;
  }
  EXPECT_EQ(owners, 1);
}

TEST_F(SpawnTest, ErrorsSayWhatToDo) {
  SpawnOptions options = Options();
  options.daemon_path = directory_ + "/no-such-program";
  absl::Status status = Client::Spawn(options).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-program"));

  options = Options();
  options.directory = directory_ + "/" + std::string(120, 'x');
  status = Client::Spawn(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("too long"));

  options = Options();
  options.host_capacity_bytes = 1;
  status = Client::Spawn(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("host.capacity"));

  options.directory.clear();
  EXPECT_THAT(std::string(Client::Spawn(options).status().message()), HasSubstr("directory"));
}

TEST_F(SpawnTest, ADaemonThatEndsAtStartIsToldWithItsLog) {
  SpawnOptions options = Options();
  std::filesystem::create_directories(options.directory);
  // Its state directory cannot be made.
  std::ofstream(options.directory + "/state") << "a file";
  const absl::Status status = Client::Spawn(options).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("state_dir"));
}

}  // namespace
}  // namespace terrace
