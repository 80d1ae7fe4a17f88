// Members of parsed JSON that may be absent or of another type: nothing here throws.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace terrace::bench {

// A value for which is_discarded() holds when the text is not JSON.
inline nlohmann::json ParseJson(std::string_view text) {
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// Null when `object` is not an object or has no such member.
inline const nlohmann::json* Member(const nlohmann::json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

inline std::optional<double> Number(const nlohmann::json& object, const char* name) {
  const nlohmann::json* member = Member(object, name);
  if (member == nullptr || !member->is_number()) return std::nullopt;
  return member->get<double>();
}

inline std::optional<std::string> Text(const nlohmann::json& object, const char* name) {
  const nlohmann::json* member = Member(object, name);
  if (member == nullptr || !member->is_string()) return std::nullopt;
  return member->get<std::string>();
}

}  // namespace terrace::bench
