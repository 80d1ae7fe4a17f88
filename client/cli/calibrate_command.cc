// terrace calibrate: the Python package does it; this finds an interpreter that has the package.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "client/cli/commands.h"

namespace terrace::cli {
namespace {

void Execute(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
}

// The exit code of `python -c code`, or -1 when it cannot be run.
int RunCode(const std::string& python, const std::string& code) {
  const pid_t child = fork();
  if (child == 0) {
    Execute({python, "-c", code});
    _exit(127);
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 127) return -1;
  return WEXITSTATUS(status);
}

}  // namespace

int RunCalibrate(const std::vector<std::string>& arguments) {
  const char* named = std::getenv("TERRACE_PYTHON");
  const std::string python = named != nullptr && *named != '\0' ? named : "python3";
  const int found = RunCode(
      python, "import importlib.util as u, sys; sys.exit(u.find_spec('terrace_kv') is None)");
  if (found < 0) {
    std::fprintf(stderr,
                 "terrace: cannot run %s; calibrate needs Python 3.11 or later: name an "
                 "interpreter in TERRACE_PYTHON\n",
                 python.c_str());
    return kError;
  }
  if (found != 0) {
    std::fprintf(stderr,
                 "terrace: %s has no package terrace_kv: install its wheel with "
                 "'terrace_kv[calibrate]', or name another interpreter in TERRACE_PYTHON\n",
                 python.c_str());
    return kError;
  }
  std::vector<std::string> words = {python, "-m", "terrace_kv", "calibrate"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  Execute(words);
  std::fprintf(stderr, "terrace: %s: %s\n", python.c_str(), std::strerror(errno));
  return kError;
}

}  // namespace terrace::cli
