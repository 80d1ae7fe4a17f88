#include "config/machine.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

// The number in a one-line limit file; no limit when the file is absent or says "max".
uint64_t ReadLimit(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  uint64_t limit = 0;
  if (!(file >> word) || !absl::SimpleAtoi(word, &limit)) {
    return std::numeric_limits<uint64_t>::max();
  }
  return limit;
}

// The tightest limit from `group` up to the hierarchy's root. Inside a container the group's own
// path may not be mounted; its ancestors, down to the mount itself, still are.
uint64_t TightestLimit(const std::string& hierarchy, std::string group, const char* file_name) {
  uint64_t limit = std::numeric_limits<uint64_t>::max();
  for (;;) {
    limit = std::min(limit, ReadLimit(absl::StrCat(hierarchy, group, "/", file_name)));
    if (group.empty()) return limit;
    group.resize(std::min(group.rfind('/'), group.size() - 1));
  }
}

bool ListContains(std::string_view comma_list, std::string_view word) {
  while (!comma_list.empty()) {
    const size_t comma = std::min(comma_list.find(','), comma_list.size());
    if (comma_list.substr(0, comma) == word) return true;
    comma_list.remove_prefix(std::min(comma + 1, comma_list.size()));
  }
  return false;
}

// Lines of /proc/self/cgroup are "id:controllers:/path"; version 2 has no controllers.
uint64_t CgroupLimitBytes(const std::string& root) {
  uint64_t limit = std::numeric_limits<uint64_t>::max();
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string group = line.substr(second + 1);
    while (!group.empty() && group.back() == '/') group.pop_back();
    if (controllers.empty()) {
      limit = std::min(limit, TightestLimit(root + "/sys/fs/cgroup", group, "memory.max"));
    } else if (ListContains(controllers, "memory")) {
      limit = std::min(
          limit, TightestLimit(root + "/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
    }
  }
  return limit;
}

// Allocated, not apparent, sizes: segment files may be sparse.
uint64_t AllocatedBytesUnder(const std::string& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  fs::recursive_directory_iterator it(directory, fs::directory_options::skip_permission_denied,
                                      error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    struct stat status;
    if (lstat(it->path().c_str(), &status) == 0 && S_ISREG(status.st_mode)) {
      bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  }
  return bytes;
}

}  // namespace

absl::StatusOr<uint64_t> MemoryLimitBytes(const std::string& root) {
  std::ifstream meminfo(root + "/proc/meminfo");
  uint64_t total_kib = 0;
  for (std::string name; meminfo >> name;) {
    if (name == "MemTotal:" && meminfo >> total_kib) break;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  if (total_kib == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(root, "/proc/meminfo: no MemTotal; give host.capacity as bytes"));
  }
  return std::min(total_kib * 1024, CgroupLimitBytes(root));
}

absl::StatusOr<uint64_t> SpaceForDirectoryBytes(const std::string& directory) {
  std::string existing = directory;
  struct statvfs space;
  while (statvfs(existing.c_str(), &space) != 0) {
    const int error = errno;
    const std::string parent = fs::path(existing).parent_path();
    if (error != ENOENT || parent == existing || parent.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(existing, ": ", strerror(error)));
    }
    existing = parent;
  }
  const uint64_t free_bytes = uint64_t{space.f_bavail} * space.f_frsize;
  return free_bytes + AllocatedBytesUnder(directory);
}

}  // namespace terrace
