// Traces by hand: requests as lists of keys, each a prefix when `chained`.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "replay/trace.h"

namespace terrace::replay::testing {

using Keys = std::vector<std::vector<uint64_t>>;

class MadeUpTrace final : public TraceReader {
 public:
  explicit MadeUpTrace(Keys requests, bool chained = true)
      : requests_(std::move(requests)), chained_(chained) {}

  absl::StatusOr<bool> Next(Request& request) override {
    if (next_ == requests_.size()) return false;
    request = {};
    for (const uint64_t key : requests_[next_]) {
      const auto before = static_cast<int32_t>(request.accesses.size());
      Access access{.key = key};
      if (chained_) {
        access.depth = static_cast<uint16_t>(before);
        access.parent = before - 1;
      }
      request.accesses.push_back(access);
    }
    ++next_;
    return true;
  }
  const TraceInfo& info() const override { return info_; }
  uint64_t bytes_read() const override { return 0; }

 private:
  const TraceInfo info_{TraceFormat::kMooncake, SizeUnit::kTokens, true};
  Keys requests_;
  bool chained_;
  size_t next_ = 0;
};

inline std::unique_ptr<TraceReader> Made(Keys requests, bool chained = true) {
  return std::make_unique<MadeUpTrace>(std::move(requests), chained);
}

}  // namespace terrace::replay::testing
