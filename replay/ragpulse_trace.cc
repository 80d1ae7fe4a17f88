// RAGPulse, requests of a RAG service by the parts of their prompts (flashserve/RAGPulse, data/).
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "config/text.h"
#include "replay/json_record.h"
#include "replay/trace_formats.h"

namespace terrace::replay {
namespace {

constexpr uint64_t kMaxTimestamp = uint64_t{1} << 43;  // s
constexpr uint64_t kMaxTokenLength = uint64_t{1} << 31;
constexpr std::string_view kPrompt = "prompt";

enum : size_t { kTimestamp, kInputLength, kOutputLength, kHashIds };
constexpr Field kFields[] = {{"timestamp", Shape::kNumber},
                             {"input_length", Shape::kNumber},
                             {"output_length", Shape::kNumber},
                             {"hash_ids", Shape::kNamed}};

struct Component {
  std::string_view name;   // on the command line
  std::string_view field;  // in hash_ids
  std::string_view table;
  std::string_view id_field;  // in the table
  ObjectKind kind;
};
// In the order in which they make a prompt.
constexpr Component kComponents[] = {
    {"sys_prompt", "sys_prompt", "1_sys_prompt.jsonl", "sys_prompt_id", ObjectKind::kKv},
    {"passages", "passages_ids", "2_passages.jsonl", "passage_id", ObjectKind::kDocument},
    {"history", "history", "3_history.jsonl", "history_id", ObjectKind::kKv},
    {"web_search", "web_search", "5_web_search.jsonl", "web_search_id", ObjectKind::kDocument},
    {"user_input", "user_input", "4_user_input.jsonl", "user_input_id", ObjectKind::kKv},
};
constexpr size_t kComponentCount = std::size(kComponents);

// A bijection for each `salt` (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).
uint64_t Mix(uint64_t value, uint64_t salt) {
  value += (salt + 1) * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

struct Selection {
  std::array<bool, kComponentCount> wanted{};
  bool chained = false;  // the whole prompt as one prefix
};

absl::StatusOr<Selection> Select(const std::vector<std::string>& names) {
  Selection selection;
  for (const std::string& name : names) {
    if (name == kPrompt && names.size() == 1) {
      selection.wanted.fill(true);
      selection.chained = true;
      continue;
    }
    const auto* found = std::find_if(std::begin(kComponents), std::end(kComponents),
                                     [&](const Component& component) {
                                       return name == component.name || name == component.field;
                                     });
    if (found == std::end(kComponents)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "component '", name, "': expected one or more of ",
          absl::StrJoin(
              kComponents, ", ",
              [](std::string* out, const Component& c) { absl::StrAppend(out, Sv(c.name)); }),
          ", or prompt alone"));
    }
    selection.wanted[found - std::begin(kComponents)] = true;
  }
  if (names.empty()) return absl::InvalidArgumentError("component: none given");
  return selection;
}

class RagPulseReader final : public TraceReader {
 public:
  RagPulseReader(std::unique_ptr<LineReader> lines, const Selection& selection,
                 std::array<TokenLengths, kComponentCount> lengths)
      : lines_(std::move(lines)), selection_(selection), lengths_(std::move(lengths)) {}

  absl::StatusOr<bool> Next(Request& request) override {
    const absl::StatusOr<bool> more = record_.ParseNext(*lines_);
    if (!more.ok() || !*more) return more;
    if (record_.Number(kTimestamp) > kMaxTimestamp) {
      return lines_->Error("field 'timestamp': more than 2^43 s");
    }
    time_us_ = std::max(time_us_, record_.Number(kTimestamp) * 1'000'000);
    request.time_us = time_us_;
    request.input_tokens = record_.Number(kInputLength);
    request.output_tokens = record_.Number(kOutputLength);
    request.accesses.clear();
    for (size_t c = 0; c < kComponentCount; ++c) {
      if (!selection_.wanted[c]) continue;
      if (absl::Status status = Append(c, request); !status.ok()) return status;
    }
    return true;
  }

  const TraceInfo& info() const override { return info_; }
  uint64_t bytes_read() const override { return lines_->bytes_read(); }

 private:
  absl::Status Append(size_t component, Request& request) {
    const Component& of = kComponents[component];
    const JsonRecord::Values& named = record_[kHashIds];
    const auto found = std::find(named.names.begin(), named.names.end(), of.field);
    if (found == named.names.end() ||
        found - named.names.begin() >= std::ptrdiff_t(named.lists())) {
      return lines_->Error(absl::StrCat("field 'hash_ids': no list '", Sv(of.field), "'"));
    }
    for (const uint64_t id : named.list(found - named.names.begin())) {
      const auto tokens = lengths_[component].find(id);
      if (tokens == lengths_[component].end()) {
        return lines_->Error(absl::StrCat("field 'hash_ids.", Sv(of.field), "': id ", id,
                                          " is not in ", Sv(of.table)));
      }
      const size_t before = request.accesses.size();
      Access access{.key = Mix(id, component), .size = tokens->second, .kind = of.kind};
      if (selection_.chained && before > 0) {
        access.parent = static_cast<int32_t>(before) - 1;
        access.depth = static_cast<uint16_t>(std::min<size_t>(before, 65535));
        access.key = Mix(access.key ^ Mix(request.accesses.back().key, 0), 0);
      }
      request.accesses.push_back(access);
    }
    return absl::OkStatus();
  }

  const TraceInfo info_{TraceFormat::kRagPulse, SizeUnit::kTokens, true};
  std::unique_ptr<LineReader> lines_;
  const Selection selection_;
  const std::array<TokenLengths, kComponentCount> lengths_;
  JsonRecord record_{kFields};
  uint64_t time_us_ = 0;
};

}  // namespace

absl::Status ReadTokenLengths(LineReader& lines, std::string_view id_field, TokenLengths& lengths) {
  const Field fields[] = {{id_field, Shape::kNumber}, {"token_length", Shape::kNumber}};
  JsonRecord record(fields);
  while (true) {
    const auto line = lines.Next();
    if (!line.ok()) return line.status();
    if (!line->has_value()) return absl::OkStatus();
    if (absl::Status status = record.Parse(**line); !status.ok()) {
      return lines.Error(status.message());
    }
    const uint64_t tokens = record.Number(1);
    if (tokens == 0 || tokens > kMaxTokenLength) {
      return lines.Error(absl::StrCat("field 'token_length': ", tokens, "; 1 to 2^31"));
    }
    if (!lengths.emplace(record.Number(0), static_cast<uint32_t>(tokens)).second) {
      return lines.Error(absl::StrCat("field '", Sv(id_field), "': ", record.Number(0), " twice"));
    }
  }
}

absl::StatusOr<std::unique_ptr<TraceReader>> NewRagPulseReader(std::unique_ptr<LineReader> lines,
                                                               const TraceOptions& options,
                                                               const std::string& directory) {
  const auto selection = Select(options.components);
  if (!selection.ok()) return selection.status();
  std::array<TokenLengths, kComponentCount> lengths;
  for (size_t c = 0; c < kComponentCount; ++c) {
    if (!selection->wanted[c]) continue;
    const auto table = LineReader::Open(absl::StrCat(directory, "/", Sv(kComponents[c].table)));
    if (!table.ok()) return table.status();
    absl::Status status = ReadTokenLengths(**table, kComponents[c].id_field, lengths[c]);
    if (!status.ok()) return status;
  }
  return std::make_unique<RagPulseReader>(std::move(lines), *selection, std::move(lengths));
}

}  // namespace terrace::replay
