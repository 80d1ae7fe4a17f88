// A size as an operator writes it: bytes, or a share of something that is known only on the
// machine (memory, free disk space). Plain value; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace terrace {

struct Size {
  uint64_t bytes = 0;    // meaningful when percent is 0
  uint32_t percent = 0;  // 1 .. 100, or 0 for an absolute size

  static constexpr Size Bytes(uint64_t bytes) { return {bytes, 0}; }
  static constexpr Size Percent(uint32_t percent) { return {0, percent}; }
  bool is_percent() const { return percent != 0; }
  // Absolute sizes as they are; a share rounded down to whole 4 KiB pages of `whole_bytes`.
  uint64_t Of(uint64_t whole_bytes) const;

  friend bool operator==(const Size& a, const Size& b) {
    return a.bytes == b.bytes && a.percent == b.percent;
  }
};

// "8GiB" "512MiB" "64KiB" "2TiB", a whole number of bytes "123", or "60%" (1 .. 100, whole).
// Decimal units are refused rather than guessed at. InvalidArgument saying what is accepted.
absl::StatusOr<Size> ParseSize(std::string_view text);
// The shortest of the forms above that is exact; ParseSize(FormatSize(s)) == s.
std::string FormatSize(const Size& size);

}  // namespace terrace
