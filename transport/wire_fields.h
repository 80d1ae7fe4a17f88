// Fields of messages that every codec of transport/ reads and writes. Private to them.
#pragma once

#include <capnp/blob.h>
#include <capnp/list.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "config/object_layout.h"
#include "transport/messages.h"

namespace terrace {

inline capnp::Data::Reader AsData(const void* data, size_t bytes) {
  return capnp::Data::Reader(static_cast<const kj::byte*>(data), bytes);
}

template <size_t N>
inline bool CopyExactly(capnp::Data::Reader data, std::array<uint8_t, N>& out) {
  if (data.size() != N) return false;
  std::memcpy(out.data(), data.begin(), N);
  return true;
}

inline std::string ToString(capnp::Text::Reader text) {
  return std::string(text.begin(), text.size());
}
inline capnp::Text::Reader ToText(const std::string& text) {
  return capnp::Text::Reader(text.c_str(), text.size());
}

inline absl::Status BadReply(const char* field) {
  return absl::InternalError(absl::StrCat("reply of terraced: ", field, " is malformed"));
}

template <typename T>
absl::Status ReadList(typename capnp::List<T>::Reader list, const char* field, uint32_t max_count,
                      std::vector<T>& out) {
  if (list.size() > max_count) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", list.size(), " entries, at most ", max_count));
  }
  out.resize(list.size());
  for (uint32_t i = 0; i < list.size(); ++i) out[i] = list[i];
  return absl::OkStatus();
}

template <typename T, typename List>
void FillList(const std::vector<T>& values, List out) {
  for (size_t i = 0; i < values.size(); ++i) out.set(i, values[i]);
}

inline bool KnownKind(uint8_t kind) {
  return kind >= static_cast<uint8_t>(ObjectKind::kKv) &&
         kind <= static_cast<uint8_t>(ObjectKind::kOpaque);
}
inline bool KnownTier(uint8_t tier) { return tier <= static_cast<uint8_t>(TierId::kHbm); }
inline bool KnownVerify(uint8_t mode) { return mode <= static_cast<uint8_t>(VerifyMode::kAlways); }

}  // namespace terrace
