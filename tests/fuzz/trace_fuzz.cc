// Hostile trace files: never a crash, and what is read keeps the promises of replay/trace.h. The
// first byte picks a format and how the input becomes lines: as they are, or as the values of the
// fields, which random text would hardly ever reach.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "replay/trace.h"
#include "replay/trace_formats.h"

namespace {

using terrace::replay::LineReader;

void Check(bool holds) {
  if (!holds) std::abort();
}

void CheckMessage(const absl::Status& status) {
  // For one line of a terminal, and it names the file.
  Check(status.message().find('\n') == absl::string_view::npos);
  Check(status.message().find("fuzz") == 0);
}

std::string Line(uint8_t format, std::string_view value) {
  const std::string text(value);
  switch (format % 3) {
    case 0:
      return R"({"timestamp":1,"input_length":2,"output_length":3,"hash_ids":[)" + text + "]}";
    case 1:
      return R"({"timestamp":"1","input_length":2,"output_length":3,"hash_ids":{"passages_ids":[)" +
             std::string("477,8016,") + text + R"(],"history":[]}})";
    default:
      return "{\"layers\":[[" + text + "],[3,4]]}";
  }
}

std::string Lines(uint8_t format, std::string_view input) {
  std::string lines;
  while (!input.empty()) {
    const size_t end = std::min(input.find('\n'), input.size());
    lines += Line(format, input.substr(0, end)) + "\n";
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  return lines;
}

void CheckRequest(const terrace::replay::Request& request, uint64_t time_us) {
  Check(request.time_us >= time_us);
  for (size_t i = 0; i < request.accesses.size(); ++i) {
    Check(request.accesses[i].parent < static_cast<int32_t>(i));
    Check(request.accesses[i].parent >= -1);
    Check(request.accesses[i].size > 0);
  }
}

void ReadAll(absl::StatusOr<std::unique_ptr<terrace::replay::TraceReader>> reader) {
  if (!reader.ok()) return CheckMessage(reader.status());
  terrace::replay::Request request;
  uint64_t time_us = 0;
  while (true) {
    const absl::StatusOr<bool> more = (*reader)->Next(request);
    if (!more.ok()) return CheckMessage(more.status());
    if (!*more) return;
    CheckRequest(request, time_us);
    time_us = request.time_us;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string text = data[0] % 2 == 0 ? std::string(input) : Lines(data[0] / 2, input);
  const auto lines = [&text] { return LineReader::OfText("fuzz", text); };
  switch (data[0] / 2 % 4) {
    case 0:
      ReadAll(terrace::replay::NewMooncakeReader(lines()));
      break;
    case 1:
      ReadAll(terrace::replay::NewRagPulseReader(lines(), {}, TERRACE_TRACES "/ragpulse"));
      break;
    case 2:
      ReadAll(terrace::replay::NewRoutingReader(lines()));
      break;
    default: {
      ReadAll(terrace::replay::NewTraceReader(lines(), {}, TERRACE_TRACES "/ragpulse"));
      terrace::replay::TokenLengths lengths;
      const absl::Status status =
          terrace::replay::ReadTokenLengths(*lines(), "passage_id", lengths);
      if (!status.ok()) CheckMessage(status);
    }
  }
  return 0;
}
