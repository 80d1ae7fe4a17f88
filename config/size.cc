#include "config/size.h"

#include <array>
#include <charconv>
#include <limits>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "config/text.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 4096;

struct Unit {
  std::string_view suffix;
  uint32_t shift;
};
constexpr std::array<Unit, 5> kUnits = {
    {{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"", 0}}};

absl::Status NotASize(std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", Sv(text.substr(0, 64)), "' is not a size: ", Sv(why),
                   "; expected bytes, or a whole number with KiB MiB GiB TiB, or 1% .. 100%"));
}

}  // namespace

uint64_t Size::Of(uint64_t whole_bytes) const {
  if (!is_percent()) return bytes;
  // Split so that the product cannot wrap.
  const uint64_t share = whole_bytes / 100 * percent + whole_bytes % 100 * percent / 100;
  return share / kPageBytes * kPageBytes;
}

absl::StatusOr<Size> ParseSize(std::string_view text) {
  uint64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc::invalid_argument) return NotASize(text, "no leading whole number");
  if (error != std::errc()) return NotASize(text, "too large");
  const std::string_view suffix(rest, static_cast<size_t>(end - rest));
  if (suffix == "%") {
    if (number < 1 || number > 100) return NotASize(text, "percentage out of range");
    return Size::Percent(static_cast<uint32_t>(number));
  }
  for (const Unit& unit : kUnits) {
    if (unit.suffix != suffix) continue;
    if (number > std::numeric_limits<uint64_t>::max() >> unit.shift) {
      return NotASize(text, "too large");
    }
    return Size::Bytes(number << unit.shift);
  }
  return NotASize(text, "unknown unit");
}

std::string FormatSize(const Size& size) {
  if (size.is_percent()) return absl::StrCat(size.percent, "%");
  for (const Unit& unit : kUnits) {
    const uint64_t number = size.bytes >> unit.shift;
    if (number != 0 && number << unit.shift == size.bytes) {
      return absl::StrCat(number, Sv(unit.suffix));
    }
  }
  return "0";
}

}  // namespace terrace
