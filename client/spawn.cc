// Client::Spawn: a private daemon over a directory.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/core.h"
#include "config/options.h"

namespace terrace {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(2);

absl::StatusOr<std::filesystem::path> PrepareDirectory(const std::string& wanted) {
  if (wanted.empty()) return absl::InvalidArgumentError("directory: empty");
  std::error_code error;
  const std::filesystem::path directory = std::filesystem::absolute(wanted, error);
  const bool created = !error && std::filesystem::create_directories(directory, error);
  if (!error && created) {
    std::filesystem::permissions(directory, std::filesystem::perms::owner_all, error);
  }
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat("directory ", wanted, " cannot be used: ", error.message()));
  }
  if (access(directory.c_str(), W_OK | X_OK) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("directory ", wanted, " is not writable"));
  }
  return directory;
}

absl::Status WriteConfig(const std::filesystem::path& directory, const std::string& socket_path,
                         const SpawnOptions& options) {
  Options config = DefaultOptions();
  config.server.socket_path = socket_path;
  config.server.state_dir = directory / "state";
  config.host.verify = options.verify == VerifyMode::kAlways ? "always" : "crossing";
  if (options.host_capacity_bytes > 0) {
    config.host.capacity = Size::Bytes(options.host_capacity_bytes);
  }
  if (options.nvme_capacity_bytes > 0) {
    config.nvme.capacity = Size::Bytes(options.nvme_capacity_bytes);
  }
  const std::string text = ToToml(config);
  const std::string path = directory / "terrace.toml";
  absl::Status valid = ParseOptions(text, path).status();
  if (!valid.ok()) return valid;
  std::ofstream file(path, std::ios::trunc);
  file << "# Written by libterrace each time it starts this private daemon.\n" << text;
  file.close();
  if (!file) return absl::FailedPreconditionError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

bool NobodyServes(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsUnavailable(status);
}

// Of many who find nobody serving, one starts the daemon while the others wait here. Returns a
// descriptor; closing it unlocks.
absl::StatusOr<int> LockDirectory(const std::filesystem::path& directory) {
  const std::string path = directory / "spawn.lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  int locked = fd < 0 ? -1 : 0;
  while (fd >= 0 && (locked = flock(fd, LOCK_EX)) != 0 && errno == EINTR) {
  }
  if (locked == 0) return fd;
  absl::Status status =
      absl::FailedPreconditionError(absl::StrCat("cannot lock ", path, ": ", std::strerror(errno)));
  if (fd >= 0) close(fd);
  return status;
}

// Connects as soon as the daemon serves.
absl::StatusOr<std::shared_ptr<ClientCore>> ConnectTo(std::unique_ptr<SpawnedDaemon> daemon,
                                                      const ClientOptions& options,
                                                      uint32_t timeout_ms) {
  const uint64_t deadline_us = MonotonicNowUs() + uint64_t{timeout_ms} * 1000;
  while (true) {
    auto core = ClientCore::Open(options);
    if (core.ok()) {
      (*core)->Own(std::move(daemon));
      return core;
    }
    if (!NobodyServes(core.status())) return core;
    if (daemon->Ended()) {
      return absl::FailedPreconditionError(
          absl::StrCat("terraced ended at start; its log ends: ", daemon->LogTail()));
    }
    if (MonotonicNowUs() > deadline_us) {
      return absl::DeadlineExceededError(absl::StrCat("terraced does not answer after ", timeout_ms,
                                                      " ms: ", core.status().message(),
                                                      "; its log ends: ", daemon->LogTail()));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Spawn(SpawnOptions options) {
  auto directory = PrepareDirectory(options.directory);
  if (!directory.ok()) return directory.status();
  options.client.socket_path = *directory / "terraced.sock";
  if (options.client.socket_path.size() >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("directory: ", directory->string(), " is too long for a socket: at most ",
                     sizeof(sockaddr_un::sun_path) - sizeof "/terraced.sock", " bytes"));
  }
  const auto lock = LockDirectory(*directory);
  if (!lock.ok()) return lock.status();
  const absl::Cleanup unlock = [fd = *lock] { close(fd); };
  auto core = ClientCore::Open(options.client);
  if (!core.ok()) {
    if (!NobodyServes(core.status())) return core.status();
    const auto binary = SpawnedDaemon::Find(options.daemon_path);
    if (!binary.ok()) return binary.status();
    absl::Status written = WriteConfig(*directory, options.client.socket_path, options);
    if (!written.ok()) return written;
    auto daemon =
        SpawnedDaemon::Start(*binary, *directory / "terrace.toml", *directory / "terraced.log");
    if (!daemon.ok()) return daemon.status();
    core = ConnectTo(*std::move(daemon), options.client, options.start_timeout_ms);
    if (!core.ok()) return core.status();
  }
  return std::unique_ptr<Client>(new Client(*std::move(core)));
}

}  // namespace terrace
