#include "tests/support/daemon_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "transport/connection.h"

namespace terrace {
namespace {

// Generous: sanitizer builds on a busy machine.
constexpr auto kStartTimeout = std::chrono::seconds(60);
constexpr auto kPoll = std::chrono::milliseconds(5);

}  // namespace

DaemonProcess::DaemonProcess(DaemonSettings settings) : settings_(std::move(settings)) {
  std::string pattern = "/var/tmp/terrace-test-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) {
    ADD_FAILURE() << "mkdtemp " << pattern;
    std::abort();
  }
  chmod(pattern.c_str(), 0755);  // other users connect in the tests of tenants
  directory_ = pattern;
  socket_path_ = directory_ + "/s";
  Start();
}

DaemonProcess::~DaemonProcess() {
  if (pid_ != 0) Kill();
  if (testing::Test::HasFailure()) std::fprintf(stderr, "%s\n", Log().c_str());
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void DaemonProcess::Start() {
  ASSERT_EQ(pid_, 0);
  const std::string config_path = directory_ + "/terrace.toml", log_path = directory_ + "/log";
  std::ofstream config(config_path);
  config << "[server]\nsocket_path = \"" << socket_path_ << "\"\nstate_dir = \"" << directory_
         << "/state\"\n[host]\ncapacity = " << settings_.host_bytes
         << "\nheadroom = 4194304\nverify = \"" << settings_.verify
         << "\"\n[nvme]\nenabled = " << (settings_.nvme_bytes > 0 ? "true" : "false") << "\n";
  if (settings_.nvme_bytes > 0) {
    config << "capacity = " << settings_.nvme_bytes << "\nsegment_size = 8388608\n";
  }
  config << settings_.extra;
  config.close();
  ASSERT_TRUE(config);
  pid_ = fork();
  ASSERT_GE(pid_, 0);
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that crashes leaves no daemon behind
    const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execl(TERRACED_PATH, "terraced", "--config", config_path.c_str(), nullptr);
    _exit(127);
  }
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  while (true) {
    ConnectionOptions options;
    options.socket_path = socket_path_;
    const absl::Status answer = Connection::Open(std::move(options)).status();
    if (answer.ok() || absl::IsPermissionDenied(answer)) return;  // to be refused is an answer, too
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = 0;
      FAIL() << "terraced ended at start:\n" << Log();
    }
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "terraced does not answer:\n" << Log();
    std::this_thread::sleep_for(kPoll);
  }
}

void DaemonProcess::Signal(int signal) const {
  ASSERT_GT(pid_, 0);
  ASSERT_EQ(kill(pid_, signal), 0);
}

int DaemonProcess::Wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void DaemonProcess::Kill() {
  Signal(SIGKILL);
  Wait();
}

int DaemonProcess::Terminate() {
  Signal(SIGTERM);
  return Wait();
}

ClientOptions DaemonProcess::Options() const {
  ClientOptions options;
  options.socket_path = socket_path_;
  options.client_name = "test";
  options.call_timeout_ms = 60000;
  return options;
}

std::unique_ptr<Client> DaemonProcess::Connect() const {
  auto client = Client::Connect(Options());
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? *std::move(client) : nullptr;
}

std::string DaemonProcess::Log() const {
  std::ifstream file(directory_ + "/log");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace terrace
