#include "client/spawned_daemon.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

extern char** environ;

namespace terrace {
namespace {

// The daemon gives up draining after 30 s by itself.
constexpr auto kStopTimeout = std::chrono::seconds(40);
constexpr auto kPoll = std::chrono::milliseconds(5);
constexpr std::streamoff kLogTailBytes = 2000;

bool IsProgram(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored) && access(path.c_str(), X_OK) == 0;
}

std::string Sibling(const std::string& file) {
  return std::filesystem::path(file).parent_path() / "terraced";
}

// Of the shared library this is linked into, or of the program when linked statically.
std::string OwnFile() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&OwnFile), &info) == 0 || info.dli_fname == nullptr) return "";
  std::error_code error;
  const auto path = std::filesystem::canonical(info.dli_fname, error);
  return error ? "" : path.string();
}

}  // namespace

absl::StatusOr<std::string> SpawnedDaemon::Find(const std::string& wanted) {
  const char* named = std::getenv("TERRACED");
  const std::string only = !wanted.empty() ? wanted : named != nullptr ? named : "";
  if (!only.empty()) {
    if (IsProgram(only)) return only;
    return absl::NotFoundError(absl::StrCat(wanted.empty() ? "$TERRACED" : "daemon_path", " = ",
                                            only, " is not a program"));
  }
  std::vector<std::string> candidates;
  if (const std::string own = OwnFile(); !own.empty()) candidates.push_back(Sibling(own));
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) candidates.push_back(Sibling(program));
  if (const char* path = std::getenv("PATH")) {
    for (const absl::string_view folder : absl::StrSplit(path, ':', absl::SkipEmpty())) {
      candidates.push_back(absl::StrCat(folder, "/terraced"));
    }
  }
  for (const std::string& candidate : candidates) {
    if (IsProgram(candidate)) return candidate;
  }
  return absl::NotFoundError(
      "terraced was not found next to the library, next to the program, or in $PATH; name it with "
      "daemon_path or $TERRACED");
}

absl::StatusOr<std::unique_ptr<SpawnedDaemon>> SpawnedDaemon::Start(const std::string& binary,
                                                                    const std::string& config_path,
                                                                    const std::string& log_path) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log_path.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  // Descriptors of the program that are not close-on-exec are none of the daemon's business.
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::string name = "terraced", flag = "--config", config = config_path;
  char* arguments[] = {name.data(), flag.data(), config.data(), nullptr};
  pid_t pid = 0;
  const int error = posix_spawn(&pid, binary.c_str(), &actions, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot start ", binary, ": ", std::strerror(error)));
  }
  return std::unique_ptr<SpawnedDaemon>(new SpawnedDaemon(pid, log_path));
}

bool SpawnedDaemon::Ended() {
  if (pid_ == 0) return true;
  pid_t waited;
  do {
    waited = waitpid(pid_, nullptr, WNOHANG);
  } while (waited < 0 && errno == EINTR);
  // ECHILD: the program ignores SIGCHLD, so the kernel reaps; then only its absence tells.
  const bool ended = waited == pid_ || (waited < 0 && kill(pid_, 0) != 0 && errno == ESRCH);
  if (ended) pid_ = 0;
  return ended;
}

void SpawnedDaemon::Stop() {
  if (Ended()) return;
  kill(pid_, SIGTERM);
  const auto deadline = std::chrono::steady_clock::now() + kStopTimeout;
  while (!Ended()) {
    if (std::chrono::steady_clock::now() > deadline) kill(pid_, SIGKILL);
    std::this_thread::sleep_for(kPoll);
  }
}

std::string SpawnedDaemon::LogTail() const {
  std::ifstream file(log_path_, std::ios::ate | std::ios::binary);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : 0;
  std::string text(std::min(size, kLogTailBytes), '\0');
  file.seekg(size - static_cast<std::streamoff>(text.size()));
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace terrace
