#include "client/cli/python.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace terrace::cli {
namespace {

void Execute(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
}

void WriteAll(int fd, std::string_view input) {
  while (!input.empty()) {
    const ssize_t wrote = write(fd, input.data(), input.size());
    if (wrote < 0 && errno != EINTR) return;  // it ended without reading: its exit code says why
    if (wrote > 0) input.remove_prefix(static_cast<size_t>(wrote));
  }
}

}  // namespace

int RunProgram(const std::vector<std::string>& words, std::string_view input) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -1;
  const auto before = signal(SIGPIPE, SIG_IGN);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGPIPE, SIG_DFL);
    dup2(ends[0], STDIN_FILENO);
    Execute(words);
    _exit(127);
  }
  close(ends[0]);
  if (child > 0) WriteAll(ends[1], input);
  close(ends[1]);
  signal(SIGPIPE, before);
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 127) return -1;
  return WEXITSTATUS(status);
}

std::string FindPython(std::string_view command, std::string_view extra) {
  const char* named = std::getenv("TERRACE_PYTHON");
  std::string python = named != nullptr && *named != '\0' ? named : "python3";
  const int found =
      RunProgram({python, "-c",
                  "import importlib.util as u, sys; sys.exit(u.find_spec('terrace_kv') is None)"},
                 "");
  if (found == 0) return python;
  if (found < 0) {
    std::fprintf(stderr,
                 "terrace: cannot run %s; %s needs Python 3.11 or later: name an "
                 "interpreter in TERRACE_PYTHON\n",
                 python.c_str(), std::string(command).c_str());
  } else {
    std::fprintf(stderr,
                 "terrace: %s has no package terrace_kv: install its wheel with "
                 "'terrace_kv[%s]', or name another interpreter in TERRACE_PYTHON\n",
                 python.c_str(), std::string(extra).c_str());
  }
  return "";
}

void BecomeProgram(const std::vector<std::string>& words) {
  Execute(words);
  std::fprintf(stderr, "terrace: %s: %s\n", words.front().c_str(), std::strerror(errno));
}

}  // namespace terrace::cli
