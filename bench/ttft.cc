// ttft: time to first token of a real model. The engine is Python, so bench/ttft.py measures, and
// its rows join ours.
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

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "bench/read_rows.h"

namespace terrace::bench {
namespace {

constexpr double kTimeoutSeconds = 900;
constexpr char kSourceDir[] = TERRACE_SOURCE_DIR;

// In the child: becomes the script or exits 127. Its own process group, so that what it starts can
// be ended with it.
[[noreturn]] void ExecScript(const std::string& python, const std::string& script,
                             const std::string& json_path, const std::string& binary_dir) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  setpgid(0, 0);
  setenv("TERRACE_BUILD_DIR", binary_dir.c_str(), 1);
  execl(python.c_str(), python.c_str(), script.c_str(), "--json", json_path.c_str(), nullptr);
  _exit(127);
}

absl::Status RunScript(const std::string& python, const std::string& script,
                       const std::string& json_path, const std::string& binary_dir) {
  const pid_t child = fork();
  if (child < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (child == 0) ExecScript(python, script, json_path, binary_dir);
  const double deadline = NowSeconds() + kTimeoutSeconds;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (NowSeconds() > deadline) {
      kill(-child, SIGKILL);
      waitpid(child, nullptr, 0);
      return absl::DeadlineExceededError(absl::StrCat(script, " took over 15 minutes"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(script, " failed with wait status ", status));
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunTtft(const Context& context) {
  const std::string python = absl::StrCat(kSourceDir, "/build/venv/bin/python");
  const std::string script = absl::StrCat(kSourceDir, "/bench/ttft.py");
  for (const std::string& needed : {python, script}) {
    if (!std::filesystem::exists(needed)) {
      return absl::NotFoundError(absl::StrCat(needed, " is missing (scripts/bootstrap)"));
    }
  }
  const std::string json_path = context.scratch_dir + "/ttft.json";
  const absl::Status ran = RunScript(python, script, json_path, context.binary_dir);
  if (!ran.ok()) return ran;
  std::ifstream file(json_path);
  std::stringstream text;
  text << file.rdbuf();
  return ReadRows(text.str());
}

}  // namespace terrace::bench
