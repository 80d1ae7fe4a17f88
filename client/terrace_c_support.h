// What the files of the C ABI share: handles, argument checks, and the wall that statuses and
// exceptions stop at. Private to client/.
#pragma once

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/terrace.h"
#include "client/terrace_c.h"

struct terrace_client {
  std::unique_ptr<terrace::Client> client;
};
struct terrace_model {
  terrace::Model model;
};
struct terrace_match {
  terrace::PrefixMatch match;
};
struct terrace_lease {
  terrace::Lease lease;
};
struct terrace_store {
  terrace::StoreOperation store;
};

namespace terrace {

inline std::string& LastError() {
  thread_local std::string text;
  return text;
}

inline int32_t Report(const absl::Status& status) {
  if (status.ok()) return TERRACE_OK;
  LastError() = std::string(status.message());
  return static_cast<int32_t>(status.code());
}

// Runs `body`; whatever it throws (memory ran out, in practice) becomes a code.
template <typename Body>
int32_t Guard(Body body) noexcept {
  try {
    return Report(body());
  } catch (const std::bad_alloc&) {
    return TERRACE_RESOURCE_EXHAUSTED;
  } catch (const std::exception& error) {
    return Report(absl::InternalError(error.what()));
  } catch (...) {
    return Report(absl::InternalError("an exception of unknown type"));
  }
}

inline absl::Status NotNull(const void* value, const char* name) {
  if (value != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": NULL"));
}

// The first of `checks` that failed.
template <typename... Checks>
absl::Status All(Checks... checks) {
  absl::Status first;
  ((first.ok() ? first = std::move(checks) : first), ...);
  return first;
}

inline absl::Status NotNullUnlessEmpty(const void* data, size_t size, const char* name) {
  return size == 0 ? absl::OkStatus() : NotNull(data, name);
}

// Another size is another header's struct: reading it would ignore members or run past it.
inline absl::Status CheckStruct(size_t given, size_t known, const char* name) {
  if (given == known) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ".struct_size: ", given, "; expected ", known));
}

inline std::string_view View(const void* data, size_t bytes) {
  return bytes == 0 ? std::string_view() : std::string_view(static_cast<const char*>(data), bytes);
}

inline ObjectKey Key(const uint8_t* bytes) {
  ObjectKey key;
  std::memcpy(key.bytes.data(), bytes, key.bytes.size());
  return key;
}

}  // namespace terrace
