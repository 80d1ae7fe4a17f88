// One line on stderr that is rewritten in place, when stderr is a terminal; erased when it goes
// away. One thread.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

namespace terrace::cli {

class Progress {
 public:
  Progress() : on_(isatty(STDERR_FILENO) == 1) {}
  ~Progress() { Show(""); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(const std::string& line) {
    if (on_) std::fprintf(stderr, "\r\033[K%s", line.c_str());
  }

 private:
  bool on_;
};

}  // namespace terrace::cli
