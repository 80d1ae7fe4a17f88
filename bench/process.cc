#include "bench/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"

namespace terrace::bench {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr int kNoProgram = 127;
constexpr size_t kTailBytes = 1000;

// In the child, where other threads of ours may have held any lock: system calls only.
[[noreturn]] void Exec(char* const* argv, char* const* environment, const char* stderr_path,
                       pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kNoProgram);  // it died before the line above
  setpgid(0, 0);
  if (*stderr_path != '\0') {
    const int log = open(stderr_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log >= 0) dup2(log, STDERR_FILENO);
  }
  execvpe(argv[0], argv, environment);
  _exit(kNoProgram);
}

std::string TailOf(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  return all.size() > kTailBytes ? all.substr(all.size() - kTailBytes) : all;
}

// For a system call that takes char**; for as long as `strings` are.
std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

absl::Status RunProgram(const std::vector<std::string>& argv, const ProgramOptions& options) {
  // The first of a name counts.
  std::vector<std::string> environment = options.environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.emplace_back(*variable);
  }
  const std::vector<char*> arguments = Pointers(argv), variables = Pointers(environment);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (child == 0) Exec(arguments.data(), variables.data(), options.stderr_path.c_str(), parent);
  const double deadline = NowSeconds() + options.timeout_s;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (NowSeconds() > deadline) {
      kill(-child, SIGKILL);
      waitpid(child, nullptr, 0);
      return absl::DeadlineExceededError(
          absl::StrCat(argv[0], " took over ", options.timeout_s, " s"));
    }
    std::this_thread::sleep_for(kPoll);
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoProgram) {
    return absl::NotFoundError(absl::StrCat(argv[0], " cannot be run (scripts/bootstrap)"));
  }
  return absl::InternalError(absl::StrCat(argv[0], " failed with wait status ", status,
                                          options.stderr_path.empty() ? "" : ": ",
                                          TailOf(options.stderr_path)));
}

}  // namespace terrace::bench
