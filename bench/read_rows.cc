#include "bench/read_rows.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"

namespace terrace::bench {
namespace {

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool Seek(std::string_view marker) {
    const size_t found = text_.find(marker, at_);
    if (found != std::string_view::npos) at_ = found + marker.size();
    return found != std::string_view::npos;
  }
  bool Take(char wanted) {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool String(std::string& out) {
    if (!Take('"')) return false;
    out.clear();
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') {
        // Only the escapes that stand for themselves.
        if (++at_ >= text_.size() || std::strchr("\"\\/", text_[at_]) == nullptr) return false;
      }
      out += text_[at_++];
    }
    return Take('"');
  }
  bool Number(double& out) {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    const size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
    const std::string digits(text_.substr(at_, end == std::string_view::npos ? end : end - at_));
    char* parsed = nullptr;
    out = std::strtod(digits.c_str(), &parsed);
    if (digits.empty() || *parsed != '\0') return false;
    at_ += digits.size();
    return true;
  }
  absl::Status Error(const char* expected) const {
    return absl::InvalidArgumentError(absl::StrCat("byte ", at_, ": expected ", expected));
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

absl::StatusOr<Row> ReadRow(Scanner& scanner) {
  std::map<std::string, std::string> strings;
  std::map<std::string, double> numbers;
  do {
    std::string key;
    if (!scanner.String(key) || !scanner.Take(':')) return scanner.Error("a member");
    if (std::string text; scanner.String(text)) {
      strings[key] = text;
    } else if (!scanner.Number(numbers[key])) {
      return scanner.Error("a string or a number");
    }
  } while (scanner.Take(','));
  if (!scanner.Take('}')) return scanner.Error("'}'");
  for (const char* needed :
       {"value", "reference_value", "ratio_median", "ratio_min", "ratio_max"}) {
    if (!numbers.contains(needed)) return scanner.Error(needed);
  }
  if (strings["name"].empty()) return scanner.Error("a row's name");
  return Row{strings["name"],
             strings["unit"],
             numbers["value"],
             strings["reference_name"],
             numbers["reference_value"],
             numbers["ratio_median"],
             numbers["ratio_min"],
             numbers["ratio_max"],
             static_cast<uint64_t>(numbers["pairs"]),
             strings["note"]};
}

}  // namespace

absl::StatusOr<std::vector<Row>> ReadRows(std::string_view json) {
  Scanner scanner(json);
  if (!scanner.Seek("\"rows\"") || !scanner.Take(':') || !scanner.Take('[')) {
    return scanner.Error("\"rows\": [");
  }
  std::vector<Row> rows;
  if (scanner.Take(']')) return rows;
  do {
    if (!scanner.Take('{')) return scanner.Error("'{'");
    auto row = ReadRow(scanner);
    if (!row.ok()) return row.status();
    rows.push_back(*std::move(row));
  } while (scanner.Take(','));
  if (!scanner.Take(']')) return scanner.Error("']'");
  return rows;
}

}  // namespace terrace::bench
