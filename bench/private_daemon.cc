#include "bench/private_daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::bench {
namespace {

constexpr double kPopulateTimeoutSeconds = 60;
constexpr double kStopTimeoutSeconds = 10;
constexpr auto kPoll = std::chrono::milliseconds(10);
constexpr auto kReadyPoll = std::chrono::milliseconds(1);  // how exactly a start can be timed

absl::Status WriteConfig(const std::string& path, const std::string& directory,
                         const std::string& socket_path, const DaemonConfig& config) {
  std::ofstream file(path);
  file << "[server]\nsocket_path = \"" << socket_path << "\"\nstate_dir = \"" << directory
       << "/state\"\n\n[host]\ncapacity = " << config.host_bytes
       << "\nheadroom = " << config.headroom_bytes << "\nverify = \"" << config.verify << "\"\n"
       << config.host_keys << "\n[nvme]\nenabled = " << (config.nvme_bytes > 0 ? "true" : "false")
       << "\n";
  if (config.nvme_bytes > 0) file << "capacity = " << config.nvme_bytes << "\n";
  file << config.nvme_keys << "\n[codec]\n" << config.codec_keys;
  file.flush();
  return file ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write ", path));
}

// In the child: becomes terraced or exits 127.
[[noreturn]] void ExecDaemon(const std::string& binary, const std::string& config_path,
                             const std::string& log_path, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // the parent died before the line above
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (log >= 0) {
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
  }
  execl(binary.c_str(), "terraced", "--config", config_path.c_str(), nullptr);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrivateDaemon>> PrivateDaemon::Start(const Context& context,
                                                                    const std::string& name,
                                                                    const DaemonConfig& config) {
  auto daemon = std::unique_ptr<PrivateDaemon>(new PrivateDaemon);
  daemon->keep_directory_ = config.keep_directory;
  daemon->directory_ = absl::StrCat(context.scratch_dir, "/", name);
  std::error_code error;
  std::filesystem::create_directories(daemon->directory_, error);
  if (error) return absl::InternalError(absl::StrCat(daemon->directory_, ": ", error.message()));
  daemon->socket_path_ = daemon->directory_ + "/s";
  const std::string config_path = daemon->directory_ + "/terrace.toml";
  const absl::Status written =
      WriteConfig(config_path, daemon->directory_, daemon->socket_path_, config);
  if (!written.ok()) return written;
  const std::string binary = context.binary_dir + "/terraced";
  const std::string log_path = daemon->directory_ + "/log";
  const pid_t parent = getpid();
  daemon->pid_ = fork();
  if (daemon->pid_ < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (daemon->pid_ == 0) ExecDaemon(binary, config_path, log_path, parent);
  const absl::Status ready = daemon->WaitReady(config.start_timeout_s);
  if (!ready.ok()) return ready;
  return daemon;
}

PrivateDaemon::~PrivateDaemon() {
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    const double deadline = NowSeconds() + kStopTimeoutSeconds;
    while (waitpid(pid_, nullptr, WNOHANG) == 0) {
      if (NowSeconds() > deadline) kill(pid_, SIGKILL);
      std::this_thread::sleep_for(kPoll);
    }
  }
  if (keep_directory_) return;
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::string PrivateDaemon::NvmeDirectory(const Context& context, const std::string& name) {
  return absl::StrCat(context.scratch_dir, "/", name, "/state/nvme");
}

absl::StatusOr<std::unique_ptr<Connection>> PrivateDaemon::Connect() const {
  ConnectionOptions options;
  options.socket_path = socket_path_;
  options.hello.client_name = "terrace-bench";
  options.call_timeout_ms = 30000;
  return Connection::Open(std::move(options));
}

absl::StatusOr<std::unique_ptr<Client>> PrivateDaemon::ConnectClient() const {
  ClientOptions options;
  options.socket_path = socket_path_;
  options.client_name = "terrace-bench";
  options.call_timeout_ms = 30000;
  return Client::Connect(std::move(options));
}

std::string PrivateDaemon::LogTail() const {
  std::ifstream file(directory_ + "/log");
  std::stringstream text;
  text << file.rdbuf();
  const std::string log = text.str();
  return log.size() > 2000 ? log.substr(log.size() - 2000) : log;
}

absl::Status PrivateDaemon::WaitReady(double timeout_s) const {
  const double deadline = NowSeconds() + timeout_s;
  absl::Status last;
  while (NowSeconds() < deadline) {
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid == pid_) {
      return absl::InternalError(absl::StrCat("terraced ended at start; its log: ", LogTail()));
    }
    const auto connection = Connect();
    // Refusing whoever names no tenant is an answer, too.
    if (connection.ok() || absl::IsPermissionDenied(connection.status())) return absl::OkStatus();
    last = connection.status();
    std::this_thread::sleep_for(kReadyPoll);
  }
  return absl::DeadlineExceededError(
      absl::StrCat("terraced does not answer: ", last.message(), "; its log: ", LogTail()));
}

absl::Status PrivateDaemon::WaitPopulated(uint64_t bytes) const {
  const auto connection = Connect();
  if (!connection.ok()) return connection.status();
  const double deadline = NowSeconds() + kPopulateTimeoutSeconds;
  while (NowSeconds() < deadline) {
    const auto status = (*connection)->Status();
    if (!status.ok()) return status.status();
    for (const TierStatus& tier : status->tiers) {
      if (tier.name == "host" && tier.populated_bytes >= bytes) return absl::OkStatus();
    }
    std::this_thread::sleep_for(kPoll);
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the host tier did not populate ", bytes, " bytes in time"));
}

absl::StatusOr<uint64_t> PrivateDaemon::PrivateResidentBytes() const {
  std::ifstream file(absl::StrCat("/proc/", pid_, "/status"));
  std::string name;
  uint64_t resident_kib = 0, shared_kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    words >> name;
    if (name == "VmRSS:") words >> resident_kib;
    if (name == "RssShmem:") words >> shared_kib;
  }
  if (resident_kib == 0) return absl::InternalError("no VmRSS in the daemon's /proc status");
  return (resident_kib - shared_kib) * 1024;
}

}  // namespace terrace::bench
