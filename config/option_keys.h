// The one table of keys an operator may set. The parser, ToToml, the example file and the reference
// in docs/configuration.md all walk it, so a key added here is in all four. Private to config/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/types/span.h"
#include "config/options.h"

namespace terrace {

// Where a key's value lives. `tenant` is an index into Options::tenants for keys of [[tenants]] and
// ignored for all others.
template <typename T>
using MemberOf = T& (*)(Options& options, size_t tenant);

struct PathField {
  MemberOf<std::string> member;  // empty: unset
  size_t max_bytes;
};
struct NameField {
  MemberOf<std::string> member;
  size_t max_bytes;
};
struct ChoiceField {
  MemberOf<std::string> member;
  absl::Span<const std::string_view> choices;
};
struct BoolField {
  MemberOf<bool> member;
};
struct IntegerField {
  MemberOf<uint64_t> member;
  uint64_t min;
  uint64_t max;
};
struct SizeRange {
  uint64_t min_bytes;
  uint64_t max_bytes;
  uint64_t multiple_bytes;    // absolute sizes must be a multiple of this
  std::string_view share_of;  // what a percentage is a share of; empty: percentages are refused
};
struct SizeField {
  MemberOf<Size> member;
  SizeRange range;
};
struct OptionalSizeField {
  MemberOf<std::optional<Size>> member;
  SizeRange range;
};
struct QualityField {  // QualityKl
  MemberOf<std::string> member;
};
struct AddressField {            // ListenAddress
  MemberOf<std::string> member;  // empty: unset
};
struct UidsField {
  MemberOf<std::vector<uint32_t>> member;
};
struct SaltField {
  MemberOf<std::optional<Salt>> member;
};

using OptionField =
    std::variant<PathField, NameField, ChoiceField, BoolField, IntegerField, SizeField,
                 OptionalSizeField, QualityField, AddressField, UidsField, SaltField>;

struct OptionKey {
  std::string_view name;
  OptionField field;
  std::string_view doc;
  // For a key whose default is computed on the machine or that must be given: what the reference
  // says in its default column, and the value the example shows commented out.
  std::string_view default_note = {};
  std::string_view sample = {};
};

struct OptionSection {
  std::string_view name;
  std::string_view doc;
  bool repeated;  // [[name]], any number of times
  absl::Span<const OptionKey> keys;
};

inline constexpr size_t kMaxTenants = 1024;
inline constexpr size_t kMaxUidsPerTenant = 4096;
inline constexpr uint32_t kMaxUid = 0xfffffffe;  // 2^32 - 1 means "no uid" to the kernel

absl::Span<const OptionSection> OptionSections();

// What a field accepts, in words: "a whole number, 1 .. 65536".
std::string Accepted(const OptionField& field);
// The field's value as TOML, or nothing when it is unset.
std::optional<std::string> Rendered(const OptionField& field, Options& options, size_t tenant);

}  // namespace terrace
