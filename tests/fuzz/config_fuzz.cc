// Hostile configuration text: never a crash, and what is accepted survives being written and read
// again. Half of the inputs are raw text; the other half pick keys from the table and use the input
// for values, which random text would hardly ever reach.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "config/option_keys.h"
#include "config/options.h"

namespace {

// Lines "key = value" under each section: a byte selects the key, the bytes up to the next newline
// are its value.
std::string FromTable(std::string_view input) {
  std::string text;
  for (const terrace::OptionSection& section : terrace::OptionSections()) {
    if (input.empty()) break;
    const bool once_more = section.repeated && input.front() % 2 != 0;
    for (int repeat = 0; repeat < (once_more ? 2 : 1); ++repeat) {
      const std::string name(section.name);
      text += section.repeated ? "[[" + name + "]]\n" : "[" + name + "]\n";
      for (int line = 0; line < 4 && !input.empty(); ++line) {
        const terrace::OptionKey& key =
            section.keys[static_cast<uint8_t>(input.front()) % section.keys.size()];
        input.remove_prefix(1);
        const size_t end = std::min(input.find('\n'), input.size());
        text += std::string(key.name) + " = " + std::string(input.substr(0, end)) + "\n";
        input.remove_prefix(std::min(end + 1, input.size()));
      }
    }
  }
  return text;
}

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string text = data[0] % 2 == 0 ? std::string(input) : FromTable(input);
  const absl::StatusOr<terrace::Options> options = terrace::ParseOptions(text, "fuzz.toml");
  if (!options.ok()) {
    // A message is for one line of a log.
    Check(options.status().code() == absl::StatusCode::kInvalidArgument);
    Check(options.status().message().find('\n') == absl::string_view::npos);
    return 0;
  }
  const absl::StatusOr<terrace::Options> again =
      terrace::ParseOptions(terrace::ToToml(*options, terrace::Secrets::kShow), "again.toml");
  Check(again.ok() && *again == *options);
  return 0;
}
