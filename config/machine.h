// What this machine grants the process: the two totals that percentages in the configuration are
// shares of. Reads small kernel files; blocks for no longer. Any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace terrace {

// Memory this process may use, bytes: the tightest limit of its cgroup and all its ancestors
// (version 2 or 1), or the machine's memory when none is lower. `root` prefixes /proc and /sys, for
// tests. FailedPrecondition when /proc/meminfo cannot be read.
absl::StatusOr<uint64_t> MemoryLimitBytes(const std::string& root = "");

// Bytes that files under `directory` could occupy in total: what an unprivileged process may still
// allocate on its file system plus what is under it already. The directory need not exist; its
// nearest existing ancestor decides. FailedPrecondition when that file system cannot be examined.
absl::StatusOr<uint64_t> SpaceForDirectoryBytes(const std::string& directory);

}  // namespace terrace
