#include "config/options.h"

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "config/option_keys.h"
#include "config/text.h"

namespace terrace {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;  // far above any real file; bounds hostile input
constexpr size_t kMaxShownBytes = 64;              // of a refused value in a message

// Operator text may end up in a terminal by way of a message.
std::string Printable(std::string_view text) {
  std::string shown(text.substr(0, kMaxShownBytes));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kMaxShownBytes) shown += "...";
  return shown;
}

bool HasControlCharacters(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
}

std::string Shown(const toml::node& node) {
  if (node.is_table()) return "a table";
  if (const toml::array* array = node.as_array()) {
    return absl::StrCat("a list of ", array->size());
  }
  if (const toml::value<std::string>* text = node.as_string()) {
    return absl::StrCat("\"", Printable(text->get()), "\"");
  }
  std::ostringstream out;
  out << toml::toml_formatter(node);
  return Printable(out.str());
}

// Reads one node into the member a field names; false when the field does not accept the value.
struct ReadVisitor {
  const toml::node& node;
  Options& options;
  size_t tenant;

  bool operator()(const PathField& f) const {
    const std::optional<std::string> path = node.value_exact<std::string>();
    if (!path || path->empty() || path->front() != '/' || path->size() > f.max_bytes ||
        HasControlCharacters(*path)) {
      return false;
    }
    f.member(options, tenant) = *path;
    return true;
  }
  bool operator()(const NameField& f) const {
    const std::optional<std::string> name = node.value_exact<std::string>();
    if (!name || name->empty() || name->size() > f.max_bytes) return false;
    const bool plain = std::all_of(name->begin(), name->end(), [](char c) {
      return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
             c == '.' || c == '_' || c == '-';
    });
    if (!plain) return false;
    f.member(options, tenant) = *name;
    return true;
  }
  bool operator()(const ChoiceField& f) const {
    const std::optional<std::string> word = node.value_exact<std::string>();
    if (!word || std::find(f.choices.begin(), f.choices.end(), *word) == f.choices.end()) {
      return false;
    }
    f.member(options, tenant) = *word;
    return true;
  }
  bool operator()(const BoolField& f) const {
    const std::optional<bool> flag = node.value_exact<bool>();
    if (flag) f.member(options, tenant) = *flag;
    return flag.has_value();
  }
  bool operator()(const IntegerField& f) const {
    const std::optional<int64_t> number = node.value_exact<int64_t>();
    if (!number || *number < 0) return false;
    const uint64_t value = static_cast<uint64_t>(*number);
    if (value < f.min || value > f.max) return false;
    f.member(options, tenant) = value;
    return true;
  }
  bool operator()(const SizeField& f) const {
    const std::optional<Size> size = ReadSize(f.range);
    if (size) f.member(options, tenant) = *size;
    return size.has_value();
  }
  bool operator()(const OptionalSizeField& f) const {
    const std::optional<Size> size = ReadSize(f.range);
    if (size) f.member(options, tenant) = *size;
    return size.has_value();
  }
  bool operator()(const UidsField& f) const {
    const toml::array* list = node.as_array();
    if (list == nullptr || list->empty() || list->size() > kMaxUidsPerTenant) return false;
    std::vector<uint32_t> uids;
    for (const toml::node& element : *list) {
      const std::optional<int64_t> uid = element.value_exact<int64_t>();
      if (!uid || *uid < 0 || *uid > int64_t{kMaxUid}) return false;
      uids.push_back(static_cast<uint32_t>(*uid));
    }
    f.member(options, tenant) = std::move(uids);
    return true;
  }
  bool operator()(const SaltField& f) const {
    const std::optional<std::string> hex = node.value_exact<std::string>();
    if (!hex) return false;
    const absl::StatusOr<ObjectKey> salt = ObjectKey::FromHex(*hex);
    if (!salt.ok()) return false;
    f.member(options, tenant) = salt->bytes;
    return true;
  }

  std::optional<Size> ReadSize(const SizeRange& range) const {
    Size size;
    if (const std::optional<int64_t> number = node.value_exact<int64_t>()) {
      if (*number < 0) return std::nullopt;
      size = Size::Bytes(static_cast<uint64_t>(*number));
    } else if (const std::optional<std::string> text = node.value_exact<std::string>()) {
      const absl::StatusOr<Size> parsed = ParseSize(*text);
      if (!parsed.ok()) return std::nullopt;
      size = *parsed;
    } else {
      return std::nullopt;
    }
    if (size.is_percent()) return range.share_of.empty() ? std::nullopt : std::optional(size);
    if (size.bytes < range.min_bytes || size.bytes > range.max_bytes ||
        size.bytes % range.multiple_bytes != 0) {
      return std::nullopt;
    }
    return size;
  }
};

// Walks one parsed document; holds only what messages need.
class Reader {
 public:
  explicit Reader(std::string_view source_name) : source_name_(source_name) {}

  absl::StatusOr<Options> Read(const toml::table& document) {
    for (const auto& [key, node] : document) {
      const OptionSection* section = FindSection(key.str());
      if (section == nullptr) return UnknownKey(key, key.str(), SectionNames());
      const absl::Status status =
          section->repeated ? ReadTenants(*section, node) : ReadSection(*section, node);
      if (!status.ok()) return status;
    }
    if (absl::Status status = CheckLeaseTimes(document); !status.ok()) return status;
    return std::move(options_);
  }

  absl::Status Error(uint32_t line, std::string_view rest) const {
    return absl::InvalidArgumentError(absl::StrCat(source_name_, ":", line, ": ", Sv(rest)));
  }

 private:
  static const OptionSection* FindSection(std::string_view name) {
    for (const OptionSection& section : OptionSections()) {
      if (section.name == name) return &section;
    }
    return nullptr;
  }

  static std::string SectionNames() {
    std::string names;
    for (const OptionSection& section : OptionSections()) {
      absl::StrAppend(&names, section.repeated ? " [[" : " [", Sv(section.name),
                      section.repeated ? "]]" : "]");
    }
    return names;
  }

  static std::string KeyNames(const OptionSection& section) {
    std::string names;
    for (const OptionKey& key : section.keys) absl::StrAppend(&names, " ", Sv(key.name));
    return names;
  }

  absl::Status UnknownKey(const toml::key& key, std::string_view path,
                          const std::string& known) const {
    return Error(key.source().begin.line,
                 absl::StrCat("key '", Printable(path), "': unknown; expected one of", known));
  }

  absl::Status ReadSection(const OptionSection& section, const toml::node& node) {
    const toml::table* table = node.as_table();
    if (table == nullptr) {
      return Error(node.source().begin.line,
                   absl::StrCat("key '", Sv(section.name), "' = ", Shown(node),
                                ": expected a table [", Sv(section.name), "]"));
    }
    return ReadKeys(section, std::string(section.name), *table, 0);
  }

  absl::Status ReadTenants(const OptionSection& section, const toml::node& node) {
    const toml::array* list = node.as_array();
    if (list == nullptr || list->size() > kMaxTenants) {
      return Error(node.source().begin.line,
                   absl::StrCat("key '", Sv(section.name), "' = ", Shown(node), ": expected 1 .. ",
                                kMaxTenants, " tables [[", Sv(section.name), "]]"));
    }
    for (const toml::node& element : *list) {
      const size_t index = options_.tenants.size();
      const std::string path = absl::StrCat(Sv(section.name), "[", index, "]");
      const uint32_t line = element.source().begin.line;
      const toml::table* table = element.as_table();
      if (table == nullptr) {
        return Error(line, absl::StrCat("key '", path, "' = ", Shown(element),
                                        ": expected a table [[", Sv(section.name), "]]"));
      }
      options_.tenants.emplace_back();
      absl::Status status = ReadKeys(section, path, *table, index);
      if (!status.ok()) return status;
      for (const char* required : {"name", "uids"}) {
        if (!table->contains(required)) {
          return Error(line, absl::StrCat("key '", path, ".", required, "': missing"));
        }
      }
      status = CheckDuplicates(path, line, options_.tenants.back());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadKeys(const OptionSection& section, const std::string& path,
                        const toml::table& table, size_t tenant) {
    for (const auto& [key, node] : table) {
      const std::string key_path = absl::StrCat(path, ".", Sv(key.str()));
      const auto known = std::find_if(section.keys.begin(), section.keys.end(),
                                      [&](const OptionKey& k) { return k.name == key.str(); });
      if (known == section.keys.end()) return UnknownKey(key, key_path, KeyNames(section));
      if (std::visit(ReadVisitor{node, options_, tenant}, known->field)) continue;
      // Even a mistyped salt is most of a secret: it must not reach a log.
      const bool secret = std::holds_alternative<SaltField>(known->field);
      return Error(key.source().begin.line,
                   absl::StrCat("key '", key_path, "' = ", secret ? "(hidden)" : Shown(node),
                                ": expected ", Accepted(known->field)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckDuplicates(const std::string& path, uint32_t line,
                               const TenantOptions& tenant) {
    if (const auto [other, added] = tenant_by_name_.emplace(tenant.name, path); !added) {
      return Error(line, absl::StrCat("key '", path, ".name' = \"", tenant.name,
                                      "\": already the name of ", other->second,
                                      "; expected distinct names"));
    }
    for (uint32_t uid : tenant.uids) {
      if (const auto [other, added] = tenant_by_uid_.emplace(uid, path); !added) {
        return Error(line, absl::StrCat("key '", path, ".uids': ", uid, " is already listed by ",
                                        other->second, "; expected each uid once"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckLeaseTimes(const toml::table& document) const {
    const LimitsSection& limits = options_.limits;
    if (limits.lease_ttl_s <= limits.max_lease_ttl_s) return absl::OkStatus();
    // One of the two was given, else the defaults would contradict each other.
    const toml::table& given = *document["limits"].as_table();
    const bool default_given = given.contains("lease_ttl_s");
    const char* name = default_given ? "lease_ttl_s" : "max_lease_ttl_s";
    return Error(given.get(name)->source().begin.line,
                 absl::StrCat("key 'limits.", name, "' = ", Shown(*given.get(name)),
                              ": expected lease_ttl_s (", limits.lease_ttl_s,
                              ") <= max_lease_ttl_s (", limits.max_lease_ttl_s, ")"));
  }

  const std::string source_name_;
  Options options_;
  std::map<std::string, std::string> tenant_by_name_;
  std::map<uint32_t, std::string> tenant_by_uid_;
};

}  // namespace

Options DefaultOptions() { return Options(); }

absl::StatusOr<Options> ParseOptions(std::string_view text, std::string_view source_name) {
  Reader reader(source_name);
  if (text.size() > kMaxFileBytes) {
    return reader.Error(1, absl::StrCat(text.size(), " bytes; expected at most ", kMaxFileBytes));
  }
  const toml::parse_result document = toml::parse(text);
  if (!document) {
    const toml::parse_error& error = document.error();
    return reader.Error(error.source().begin.line,
                        absl::StrCat("not TOML: ", Printable(error.description())));
  }
  return reader.Read(document.table());
}

absl::StatusOr<Options> LoadOptions(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.gcount() == 0 && !file.eof()) {
    return absl::ErrnoToStatus(errno != 0 ? errno : EIO,
                               absl::StrCat("configuration file ", path));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return ParseOptions(text, path);
}

}  // namespace terrace
