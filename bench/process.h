// Runs another program to its end: fio, a Python script.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace terrace::bench {

// argv[0] is looked up in $PATH. The program is a process group of its own, which ends with it,
// with ours, and after `timeout_s`. Its stderr goes to `stderr_path`, or where ours goes when that
// is empty. NotFound: there is no such program. DeadlineExceeded; Internal: it failed, with the end
// of what it said to `stderr_path`.
absl::Status RunProgram(const std::vector<std::string>& argv, double timeout_s,
                        const std::string& stderr_path = "");

}  // namespace terrace::bench
