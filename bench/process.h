// Runs another program to its end: fio, a Python script.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace terrace::bench {

struct ProgramOptions {
  double timeout_s = 0;
  std::string stderr_path;               // empty: where ours goes
  std::vector<std::string> environment;  // "NAME=value", beside ours
};

// argv[0] is looked up in $PATH. The program is a process group of its own, which ends with it,
// with ours, and after timeout_s. NotFound: there is no such program. DeadlineExceeded; Internal:
// it failed, with the end of what it said to stderr_path.
absl::Status RunProgram(const std::vector<std::string>& argv, const ProgramOptions& options);

}  // namespace terrace::bench
