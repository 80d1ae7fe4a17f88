// Mooncake's open traces (Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST
// 2025; kvcache-ai/Mooncake, FAST25-release/traces).
#include <algorithm>
#include <utility>

#include "replay/json_record.h"
#include "replay/trace_formats.h"

namespace terrace::replay {
namespace {

constexpr uint64_t kBlockTokens = 512;
constexpr uint64_t kMaxTimestamp = uint64_t{1} << 53;  // ms

enum : size_t { kTimestamp, kInputLength, kOutputLength, kHashIds };
constexpr Field kFields[] = {{"timestamp", Shape::kNumber},
                             {"input_length", Shape::kNumber},
                             {"output_length", Shape::kNumber},
                             {"hash_ids", Shape::kList}};

class MooncakeReader final : public TraceReader {
 public:
  explicit MooncakeReader(std::unique_ptr<LineReader> lines) : lines_(std::move(lines)) {}

  absl::StatusOr<bool> Next(Request& request) override {
    const absl::StatusOr<bool> more = record_.ParseNext(*lines_);
    if (!more.ok() || !*more) return more;
    if (record_.Number(kTimestamp) > kMaxTimestamp) {
      return lines_->Error("field 'timestamp': more than 2^53 ms");
    }
    time_us_ = std::max(time_us_, record_.Number(kTimestamp) * 1000);
    request.time_us = time_us_;
    request.input_tokens = record_.Number(kInputLength);
    request.output_tokens = record_.Number(kOutputLength);
    request.accesses.clear();
    for (const uint64_t id : record_[kHashIds].numbers) {
      const size_t before = request.accesses.size();
      request.accesses.push_back({.key = id,
                                  .size = kBlockTokens,
                                  .depth = static_cast<uint16_t>(std::min<size_t>(before, 65535)),
                                  .kind = ObjectKind::kKv,
                                  .parent = static_cast<int32_t>(before) - 1});
    }
    return true;
  }

  const TraceInfo& info() const override { return info_; }
  uint64_t bytes_read() const override { return lines_->bytes_read(); }

 private:
  const TraceInfo info_{TraceFormat::kMooncake, SizeUnit::kTokens, true};
  std::unique_ptr<LineReader> lines_;
  JsonRecord record_{kFields};
  uint64_t time_us_ = 0;
};

}  // namespace

std::unique_ptr<TraceReader> NewMooncakeReader(std::unique_ptr<LineReader> lines) {
  return std::make_unique<MooncakeReader>(std::move(lines));
}

}  // namespace terrace::replay
