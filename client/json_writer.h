// A small JSON writer: values in, RFC 8259 text out. It places commas and escapes strings; the
// caller keeps Begin and End paired and gives every member of an object a Key first (asserted in
// debug builds). Not thread-safe.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace terrace {

class JsonWriter {
 public:
  // indent 0: one line, no spaces, for machines and for a line a sample. Otherwise spaces a level.
  explicit JsonWriter(int indent = 0) : indent_(indent) {}

  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }
  JsonWriter& Key(std::string_view key);

  // Bytes that are not UTF-8 are replaced by U+FFFD, so that the text is always valid JSON.
  JsonWriter& String(std::string_view value);
  JsonWriter& Bool(bool value);
  JsonWriter& Null();
  JsonWriter& Double(double value);  // null when not finite, which JSON cannot say
  template <std::integral T>
  JsonWriter& Int(T value) {
    return Raw(std::to_string(value));
  }

  // Key and value in one call.
  JsonWriter& Field(std::string_view key, std::string_view value) { return Key(key).String(value); }
  JsonWriter& Field(std::string_view key, const char* value) { return Key(key).String(value); }
  JsonWriter& Field(std::string_view key, bool value) { return Key(key).Bool(value); }
  JsonWriter& Field(std::string_view key, double value) { return Key(key).Double(value); }
  template <std::integral T>
  requires(!std::same_as<T, bool>) JsonWriter& Field(std::string_view key, T value) {
    return Key(key).Int(value);
  }

  // The finished text; every Begin must have been ended.
  const std::string& text() const;

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  JsonWriter& Raw(std::string_view text);
  void BeforeValue();
  void NewLine();

  int indent_;
  std::string text_;
  std::vector<bool> has_members_;  // one a level that is open
  bool after_key_ = false;
};

// `value` as a JSON string literal with its quotes.
std::string JsonQuote(std::string_view value);

}  // namespace terrace
