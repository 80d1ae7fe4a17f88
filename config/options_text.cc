// Options as text: the effective configuration, the example file and the reference tables.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "config/option_keys.h"
#include "config/options.h"
#include "config/text.h"

namespace terrace {
namespace {

constexpr size_t kCommentColumns = 98;

std::string Header(const OptionSection& section) {
  return section.repeated ? absl::StrCat("[[", Sv(section.name), "]]")
                          : absl::StrCat("[", Sv(section.name), "]");
}

// `text` as comment lines of at most kCommentColumns columns.
std::string Comment(std::string_view text) {
  std::string comment;
  std::string line = "#";
  for (absl::string_view word : absl::StrSplit(Sv(text), ' ')) {
    if (line.size() + 1 + word.size() > kCommentColumns) {
      absl::StrAppend(&comment, line, "\n");
      line = "#";
    }
    absl::StrAppend(&line, " ", word);
  }
  absl::StrAppend(&comment, line, "\n");
  return comment;
}

void AppendValues(const OptionSection& section, Options& options, size_t tenant, Secrets secrets,
                  std::string& out) {
  absl::StrAppend(&out, out.empty() ? "" : "\n", Header(section), "\n");
  for (const OptionKey& key : section.keys) {
    const std::optional<std::string> value = Rendered(key.field, options, tenant);
    const bool secret = std::holds_alternative<SaltField>(key.field);
    if (!value) {
      absl::StrAppend(&out, "# ", Sv(key.name), ": ", Sv(key.default_note), "\n");
    } else if (secret && secrets == Secrets::kHide) {
      absl::StrAppend(&out, "# ", Sv(key.name), ": set, not shown\n");
    } else {
      absl::StrAppend(&out, Sv(key.name), " = ", *value, "\n");
    }
  }
}

}  // namespace

std::string ToToml(const Options& options, Secrets secrets) {
  Options values = options;  // the table's accessors hand out references to change
  std::string out;
  for (const OptionSection& section : OptionSections()) {
    const size_t count = section.repeated ? values.tenants.size() : 1;
    for (size_t i = 0; i < count; ++i) AppendValues(section, values, i, secrets, out);
  }
  return out;
}

std::vector<std::string> ChangedKeys(const Options& before, const Options& after) {
  Options a = before, b = after;  // the table's accessors hand out references to change
  std::vector<std::string> changed;
  const auto compare = [&](const OptionSection& section, const std::string& path, size_t tenant) {
    for (const OptionKey& key : section.keys) {
      if (Rendered(key.field, a, tenant) != Rendered(key.field, b, tenant)) {
        changed.push_back(absl::StrCat(path, ".", Sv(key.name)));
      }
    }
  };
  for (const OptionSection& section : OptionSections()) {
    if (!section.repeated) {
      compare(section, std::string(section.name), 0);
      continue;
    }
    const bool same_tenants =
        std::equal(a.tenants.begin(), a.tenants.end(), b.tenants.begin(), b.tenants.end(),
                   [](const TenantOptions& x, const TenantOptions& y) { return x.name == y.name; });
    if (!same_tenants) {
      changed.emplace_back(section.name);
      continue;
    }
    for (size_t i = 0; i < a.tenants.size(); ++i) {
      compare(section, absl::StrCat(Sv(section.name), ".", a.tenants[i].name), i);
    }
  }
  return changed;
}

std::string ExampleToml() {
  Options defaults = DefaultOptions();
  std::string out =
      "# Configuration of terraced. Every key is listed; what is not commented out shows its\n"
      "# default, so an empty file, or none, means the same. Reference: docs/configuration.md.\n";
  for (const OptionSection& section : OptionSections()) {
    absl::StrAppend(&out, "\n", Comment(section.doc), section.repeated ? "# " : "", Header(section),
                    "\n");
    for (const OptionKey& key : section.keys) {
      absl::StrAppend(&out, "\n", Comment(key.doc),
                      Comment(absl::StrCat("Accepts ", Accepted(key.field), ".")));
      if (key.default_note.empty()) {
        absl::StrAppend(&out, Sv(key.name), " = ", *Rendered(key.field, defaults, 0), "\n");
      } else {
        absl::StrAppend(&out, Comment(absl::StrCat("Default: ", Sv(key.default_note), ".")), "# ",
                        Sv(key.name), " = ", Sv(key.sample), "\n");
      }
    }
  }
  return out;
}

std::string ReferenceTables() {
  Options defaults = DefaultOptions();
  std::string out;
  for (const OptionSection& section : OptionSections()) {
    absl::StrAppend(&out, out.empty() ? "" : "\n", "### `", Header(section), "`\n\n",
                    Sv(section.doc), "\n\n| key | default | accepts | what it does |\n",
                    "|---|---|---|---|\n");
    for (const OptionKey& key : section.keys) {
      const std::string value = key.default_note.empty()
                                    ? absl::StrCat("`", *Rendered(key.field, defaults, 0), "`")
                                    : std::string(key.default_note);
      absl::StrAppend(&out, "| `", Sv(section.name), ".", Sv(key.name), "` | ", value, " | ",
                      Accepted(key.field), " | ", Sv(key.doc), " |\n");
    }
  }
  return out;
}

}  // namespace terrace
