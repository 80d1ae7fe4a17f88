// Hostile requests to the RESP server: never a crash, memory that follows what arrived, and the
// same commands whatever the pieces in which the bytes come. The first byte picks the size of
// pieces.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "transport/resp_parser.h"

namespace {

using terrace::RespParser;
using Event = RespParser::Event;

void Check(bool holds) {
  if (!holds) std::abort();
}

// What was seen, as text.
std::string Parse(std::string_view text, size_t step) {
  RespParser parser;
  const size_t most_args = text.size();
  std::string seen, input;
  uint64_t value_left = 0;
  while (true) {
    const size_t taken = std::min<uint64_t>(value_left, input.size());
    value_left -= taken;
    input.erase(0, taken);
    size_t used = 0;
    Event event = Event::kNeedMore;
    if (value_left == 0) {
      if (taken > 0) parser.ValueTaken();
      event = parser.Next(input, used);
      Check(used <= input.size());
      input.erase(0, used);
    }
    size_t gathered = 0;
    for (const std::string& arg : parser.args()) gathered += arg.size();
    Check(gathered <= RespParser::kMaxArgumentBytes);
    Check(parser.args().size() <= most_args);
    switch (event) {
      case Event::kNeedMore:
        Check(input.size() <= RespParser::kMaxLineBytes);
        if (text.empty()) return seen;
        input += text.substr(0, step);
        text.remove_prefix(std::min(step, text.size()));
        break;
      case Event::kValue:
        Check(parser.value_bytes() <= RespParser::kMaxBulkBytes);
        seen += "value " + std::to_string(parser.value_bytes()) + "\n";
        value_left = parser.value_bytes();
        if (value_left == 0) parser.ValueTaken();
        break;
      case Event::kValueEnd:
        seen += "end\n";
        break;
      case Event::kCommand:
      case Event::kTooLarge:
        seen += event == Event::kCommand ? "command\n" : "too large\n";
        for (const std::string& arg : parser.args()) seen += arg + "\n";
        break;
      case Event::kViolation:
        Check(*parser.error() != '\0');
        return seen + "violation\n";
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t step = 1 + data[0] % 64;
  Check(Parse(text, step) == Parse(text, std::max<size_t>(text.size(), 1)));
  return 0;
}
