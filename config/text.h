// Bridge between the two string views. Debian builds Abseil as C++14, so absl::string_view is a
// type of its own and absl::StrCat does not take a std::string_view.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace terrace {

// A view of the same bytes for an Abseil call; borrows, never copies.
inline absl::string_view Sv(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace terrace
