// terrace ls, show, rm, pin, unpin: single objects.
#include <cstdio>
#include <functional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/json_writer.h"
#include "client/object_json.h"

namespace terrace::cli {
namespace {

using Align = Table::Align;
constexpr uint32_t kPageObjects = 1000;
constexpr size_t kKeyDigits = 64;

std::string TierNames(const ObjectInfo& object) {
  std::vector<std::string> names;
  if (object.in_hbm) names.push_back("hbm");
  if (object.in_host) names.push_back("host");
  if (object.in_nvme) names.push_back("nvme");
  return names.empty() ? "-" : absl::StrJoin(names, " ");
}

std::string FingerprintHex(const Fingerprint& fingerprint) {
  return ObjectKey{fingerprint}.ToHex();
}

absl::StatusOr<std::string> NormalPrefix(std::string_view text) {
  std::string prefix(text);
  absl::AsciiStrToLower(&prefix);
  if (prefix.size() > kKeyDigits ||
      prefix.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", prefix, "' is not a key: expected 1 to 64 hexadecimal digits"));
  }
  return prefix;
}

// Visits every object of the tenant until `visit` returns false.
absl::Status ForEachObject(Connection& connection,
                           const std::function<bool(const ObjectInfo&)>& visit) {
  uint64_t cursor = 0;
  do {
    auto page = connection.List(cursor, kPageObjects);
    if (!page.ok()) return page.status();
    for (const ObjectInfo& object : page->objects) {
      if (!visit(object)) return absl::OkStatus();
    }
    cursor = page->next_cursor;
  } while (cursor != 0);
  return absl::OkStatus();
}

// The key that `text` names: all 64 digits, or as many leading ones as make it unique.
absl::StatusOr<ObjectKey> ResolveKey(Connection& connection, std::string_view text) {
  auto prefix = NormalPrefix(text);
  if (!prefix.ok()) return prefix.status();
  if (prefix->empty()) return absl::InvalidArgumentError("the key is empty");
  if (prefix->size() == kKeyDigits) return ObjectKey::FromHex(*prefix);
  std::vector<ObjectKey> matches;
  const absl::Status listed = ForEachObject(connection, [&](const ObjectInfo& object) {
    if (object.key.ToHex().starts_with(*prefix)) matches.push_back(object.key);
    return matches.size() < 2;
  });
  if (!listed.ok()) return listed;
  if (matches.empty()) {
    return absl::NotFoundError(absl::StrCat("no object's key starts with ", *prefix));
  }
  if (matches.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("more than one object's key starts with ",
                                                   *prefix, ": ", matches[0].ToHex(), ", ",
                                                   matches[1].ToHex(), "; give more digits"));
  }
  return matches[0];
}

// Runs `action` on each key; goes on after a failure, and the first failure's code is the result.
int ForEachKey(const GlobalOptions& options, const std::vector<std::string>& keys,
               const char* done_word,
               const std::function<absl::Status(Connection&, const ObjectKey&)>& action) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  JsonWriter json;
  json.BeginObject().Key(done_word).BeginArray();
  GlobalOptions quiet = options;
  quiet.json = false;  // the failures are in this command's own JSON
  std::vector<std::pair<std::string, std::string>> failures;
  for (const std::string& text : keys) {
    const auto key = ResolveKey(*connection, text);
    const absl::Status status = key.ok() ? action(*connection, *key) : key.status();
    if (!status.ok()) {
      const int code = Fail(quiet, text, status);
      if (exit_code == kOk) exit_code = code;
      failures.emplace_back(text, std::string(status.message()));
      continue;
    }
    json.String(key->ToHex());
    if (!options.json) std::printf("%s %s\n", done_word, key->ToHex().c_str());
  }
  json.EndArray().Key("failed").BeginArray();
  for (const auto& [key, error] : failures) {
    json.BeginObject().Field("key", key).Field("error", error).EndObject();
  }
  json.EndArray().EndObject();
  if (options.json) std::printf("%s\n", json.text().c_str());
  return exit_code;
}

void PrintObjects(const std::vector<ObjectInfo>& objects, bool more) {
  Table table({{"KEY"},
               {"KIND"},
               {"TOKENS", Align::kRight},
               {"BYTES", Align::kRight},
               {"TIERS"},
               {"LEASES", Align::kRight},
               {"PINNED"}});
  for (const ObjectInfo& object : objects) {
    table.AddRow({object.key.ToHex(), KindName(object.kind), HumanCount(object.token_count),
                  HumanBytes(object.payload_bytes), TierNames(object),
                  std::to_string(object.lease_count), object.pinned ? "yes" : ""});
  }
  std::fputs(table.empty() ? "no objects\n" : table.Render().c_str(), stdout);
  if (more) {
    std::printf("... and more: the first %zu are shown (--limit N, 0 for all)\n", objects.size());
  }
}

void PrintObject(const ObjectInfo& object) {
  Table table({{"key"}, {object.key.ToHex()}});
  table.AddRow({"parent", object.parent.IsZero() ? "-" : object.parent.ToHex()});
  table.AddRow({"fingerprint", FingerprintHex(object.fingerprint)});
  table.AddRow({"kind", KindName(object.kind)});
  table.AddRow({"tokens", absl::StrCat(HumanCount(object.token_count), " in ",
                                       HumanCount(object.grain_count), " grains")});
  table.AddRow({"payload", absl::StrCat(HumanBytes(object.payload_bytes), " in ", object.part_count,
                                        " parts")});
  table.AddRow({"tiers", TierNames(object)});
  table.AddRow({"pinned", object.pinned ? "yes" : "no"});
  table.AddRow({"leases", std::to_string(object.lease_count)});
  table.AddRow({"remake cost",
                object.cost_us == 0 ? "unknown" : absl::StrCat(HumanCount(object.cost_us), " us")});
  std::fputs(table.Render().c_str(), stdout);
}

}  // namespace

int RunList(const GlobalOptions& options, const ListOptions& list) {
  const auto prefix = NormalPrefix(list.prefix);
  if (!prefix.ok()) {
    Fail(options, "--prefix", prefix.status());
    return kUsage;
  }
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  std::vector<ObjectInfo> objects;
  bool more = false;
  const absl::Status listed = ForEachObject(*connection, [&](const ObjectInfo& object) {
    if (!prefix->empty() && !object.key.ToHex().starts_with(*prefix)) return true;
    if (list.limit != 0 && objects.size() == list.limit) {
      more = true;
      return false;
    }
    objects.push_back(object);
    return true;
  });
  if (!listed.ok()) return Fail(options, "ls", listed);
  if (!options.json) {
    PrintObjects(objects, more);
    return kOk;
  }
  JsonWriter json(2);
  json.BeginObject().Key("objects").BeginArray();
  for (const ObjectInfo& object : objects) WriteObject(object, json);
  json.EndArray().Field("more", more).EndObject();
  std::printf("%s\n", json.text().c_str());
  return kOk;
}

int RunShow(const GlobalOptions& options, const std::string& key_text) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  const auto key = ResolveKey(*connection, key_text);
  if (!key.ok()) return Fail(options, "show", key.status());
  const auto object = connection->Show(*key);
  if (!object.ok()) return Fail(options, "show", object.status());
  if (options.json) {
    JsonWriter json(2);
    WriteObject(*object, json);
    std::printf("%s\n", json.text().c_str());
  } else {
    PrintObject(*object);
  }
  return kOk;
}

int RunRemove(const GlobalOptions& options, const std::vector<std::string>& keys) {
  return ForEachKey(options, keys, "removed", [](Connection& connection, const ObjectKey& key) {
    return connection.Remove(key);
  });
}

int RunPin(const GlobalOptions& options, const std::vector<std::string>& keys, bool pinned) {
  return ForEachKey(options, keys, pinned ? "pinned" : "unpinned",
                    [pinned](Connection& connection, const ObjectKey& key) {
                      return connection.Pin(key, pinned);
                    });
}

}  // namespace terrace::cli
