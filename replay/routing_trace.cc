// Which experts a mixture of experts chose: a token a line, a list of experts a layer.
#include <utility>

#include "absl/strings/str_cat.h"
#include "replay/json_record.h"
#include "replay/trace_formats.h"

namespace terrace::replay {
namespace {

constexpr uint64_t kMaxExpert = 65535;
constexpr size_t kMaxLayers = 65535;

constexpr Field kFields[] = {{"layers", Shape::kLists}};

class RoutingReader final : public TraceReader {
 public:
  RoutingReader(std::unique_ptr<LineReader> lines, uint32_t layers)
      : info_{TraceFormat::kRouting, SizeUnit::kExperts, false, layers}, lines_(std::move(lines)) {}

  absl::StatusOr<bool> Next(Request& request) override {
    const absl::StatusOr<bool> more = record_.ParseNext(*lines_);
    if (!more.ok() || !*more) return more;
    const JsonRecord::Values& layers = record_[0];
    if (layers.lists() != info_.layers) {
      return lines_->Error(absl::StrCat("field 'layers': ", layers.lists(), " layers, where the ",
                                        "first line has ", info_.layers));
    }
    request = {.input_tokens = 1, .accesses = std::move(request.accesses)};
    request.accesses.clear();
    for (uint32_t layer = 0; layer < info_.layers; ++layer) {
      for (const uint64_t expert : layers.list(layer)) {
        if (expert > kMaxExpert) {
          return lines_->Error(absl::StrCat("field 'layers': expert ", expert, " in layer ", layer,
                                            "; at most ", kMaxExpert));
        }
        request.accesses.push_back({.key = (uint64_t{layer} << 16) | expert,
                                    .depth = static_cast<uint16_t>(layer),
                                    .kind = ObjectKind::kExpert});
      }
    }
    return true;
  }

  const TraceInfo& info() const override { return info_; }
  uint64_t bytes_read() const override { return lines_->bytes_read(); }

 private:
  const TraceInfo info_;
  std::unique_ptr<LineReader> lines_;
  JsonRecord record_{kFields};
};

}  // namespace

absl::StatusOr<std::unique_ptr<TraceReader>> NewRoutingReader(std::unique_ptr<LineReader> lines) {
  const auto line = lines->Next();
  if (!line.ok()) return line.status();
  if (!line->has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(lines->name(), ": no token"));
  }
  JsonRecord record{kFields};
  if (absl::Status status = record.Parse(**line); !status.ok()) {
    return lines->Error(status.message());
  }
  const size_t layers = record[0].lists();
  if (layers == 0 || layers > kMaxLayers) {
    return lines->Error(absl::StrCat("field 'layers': ", layers, " layers; 1 to ", kMaxLayers));
  }
  lines->Unread();
  return std::make_unique<RoutingReader>(std::move(lines), static_cast<uint32_t>(layers));
}

}  // namespace terrace::replay
