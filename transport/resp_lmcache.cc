#include "transport/resp_lmcache.h"

#include <algorithm>

namespace terrace {
namespace {

constexpr size_t kMaxGroups = 64;

}  // namespace

// Keys are model@world@rank...@hash, maybe with more behind: up to the third '@'.
std::string_view RespLmcacheSizes::GroupOf(std::string_view key) {
  size_t end = 0;
  for (int fields = 0; fields < 3; ++fields) {
    const size_t at = key.find('@', end);
    if (at == std::string_view::npos) return {};
    end = at + 1;
  }
  return key.substr(0, end);
}

void RespLmcacheSizes::Seen(std::string_view key, uint64_t bytes) {
  last_bytes_ = bytes;
  const std::string_view group = GroupOf(key);
  const auto found = std::find_if(groups_.begin(), groups_.end(),
                                  [&](const Group& known) { return known.name == group; });
  if (found != groups_.end()) {
    found->bytes = bytes;
    return;
  }
  if (groups_.size() == kMaxGroups) groups_.pop_front();
  groups_.push_back({std::string(group), bytes});
}

std::string RespLmcacheSizes::MissLine(std::string_view key) const {
  const std::string_view group = GroupOf(key);
  const auto found = std::find_if(groups_.begin(), groups_.end(),
                                  [&](const Group& known) { return known.name == group; });
  const uint64_t bytes = found != groups_.end() ? found->bytes : last_bytes_;
  // "-" in place of "$", and the same number of characters.
  std::string line = "-MISS";
  line.resize(1 + std::to_string(bytes).size(), '_');
  line += "\r\n";
  return line;
}

}  // namespace terrace
