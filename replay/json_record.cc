#include "replay/json_record.h"

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "config/text.h"

namespace terrace::replay {
namespace {

using Json = nlohmann::json;

// How deep lists lie inside a field.
int ListDepth(Shape shape) { return shape == Shape::kNumber ? 0 : shape == Shape::kLists ? 2 : 1; }

std::string_view Expected(Shape shape) {
  switch (shape) {
    case Shape::kNumber:
      return "a whole number from 0 to 2^64 - 1";
    case Shape::kList:
      return "a list of whole numbers from 0 to 2^64 - 1";
    case Shape::kLists:
      return "a list of lists of whole numbers from 0 to 2^64 - 1";
    case Shape::kNamed:
      return "an object of lists of whole numbers from 0 to 2^64 - 1";
  }
  return "";
}

// The events of one line; the first thing that is wrong ends the parse and is in `error`.
class Events : public nlohmann::json_sax<Json> {
 public:
  std::string error;

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    if (error.empty()) error = absl::StrCat("column ", position, ": not valid JSON");
    return false;
  }
  bool binary(binary_t&) override { return true; }  // JSON text has none

 protected:
  bool Wrong(std::string what) {
    error = std::move(what);
    return false;
  }
  bool NoObject() { return Wrong("not a JSON object"); }
};

class TopHandler final : public Events {
 public:
  std::vector<TopField> fields;

  bool null() override { return Scalar(); }
  bool boolean(bool) override { return Scalar(); }
  bool number_integer(number_integer_t) override { return Scalar(); }
  bool number_unsigned(number_unsigned_t) override { return Scalar(); }
  bool number_float(number_float_t, const string_t&) override { return Scalar(); }
  bool string(string_t&) override { return Scalar(); }
  bool key(string_t& name) override {
    if (depth_ == 1) fields.push_back({name, false});
    return true;
  }
  bool start_object(size_t) override {
    if (++depth_ == 2 && !fields.empty()) fields.back().is_object = true;
    return true;
  }
  bool start_array(size_t) override { return ++depth_ > 1 || NoObject(); }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }

 private:
  bool Scalar() { return depth_ > 0 || NoObject(); }

  int64_t depth_ = 0;
};

}  // namespace

class JsonRecord::Handler final : public Events {
 public:
  explicit Handler(JsonRecord& record) : record_(record) {}

  bool null() override { return Other(); }
  bool boolean(bool) override { return Other(); }
  bool number_integer(number_integer_t) override { return Other(); }  // only what is below zero
  bool number_float(number_float_t, const string_t&) override { return Other(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (skipping()) return true;
    if (!field_ || lists_ != ListDepth(field_->shape)) return Other();
    values_->numbers.push_back(value);
    return true;
  }

  bool string(string_t& text) override {
    if (skipping()) return true;
    uint64_t value;
    if (!field_ || field_->shape != Shape::kNumber || lists_ != 0 ||
        !absl::SimpleAtoi(text, &value)) {
      return Other();
    }
    values_->numbers.push_back(value);
    return true;
  }

  bool key(string_t& name) override {
    if (skipping_depth_ > 0) return true;
    if (objects_ == 2) {
      values_->names.push_back(name);
      return true;
    }
    field_ = nullptr;
    for (size_t i = 0; i < record_.fields_.size(); ++i) {
      if (record_.fields_[i].name != name) continue;
      field_ = &record_.fields_[i];
      values_ = &record_.values_[i];
      if (values_->present) return Wrong(absl::StrCat("field '", name, "' is there twice"));
      values_->present = true;
    }
    return true;
  }

  bool start_object(size_t) override {
    if (objects_ == 0) return ++objects_ == 1;
    if (skipping()) return ++skipping_depth_ > 0;
    if (field_->shape != Shape::kNamed || objects_ != 1) return Other();
    ++objects_;
    return true;
  }
  bool end_object() override {
    if (skipping_depth_ > 0) return --skipping_depth_ >= 0;
    return --objects_ >= 0;
  }

  bool start_array(size_t) override {
    if (objects_ == 0) return NoObject();
    if (skipping()) return ++skipping_depth_ > 0;
    const bool in_place = field_->shape != Shape::kNamed || objects_ == 2;
    if (!in_place || lists_ == ListDepth(field_->shape)) return Other();
    ++lists_;
    return true;
  }
  bool end_array() override {
    if (skipping_depth_ > 0) return --skipping_depth_ >= 0;
    const bool innermost = lists_-- == ListDepth(field_->shape);
    if (innermost && field_->shape != Shape::kList) {
      values_->ends.push_back(values_->numbers.size());
    }
    return true;
  }

 private:
  bool skipping() const { return skipping_depth_ > 0 || (objects_ > 0 && field_ == nullptr); }

  // A value where another kind of value belongs.
  bool Other() {
    if (objects_ == 0) return NoObject();
    if (skipping()) return true;
    return Wrong(
        absl::StrCat("field '", Sv(field_->name), "': expected ", Sv(Expected(field_->shape))));
  }

  JsonRecord& record_;
  const Field* field_ = nullptr;  // of the table, that is being read; null: one to skip
  Values* values_ = nullptr;
  int objects_ = 0, lists_ = 0;
  int64_t skipping_depth_ = 0;  // lists and objects open inside a field to skip
};

JsonRecord::JsonRecord(absl::Span<const Field> fields) : fields_(fields), values_(fields.size()) {}

absl::Status JsonRecord::Parse(std::string_view line) {
  for (Values& values : values_) {
    values.present = false;
    values.numbers.clear();
    values.ends.clear();
    values.names.clear();
  }
  Handler handler(*this);
  if (!Json::sax_parse(line.data(), line.data() + line.size(), &handler)) {
    return absl::InvalidArgumentError(handler.error);
  }
  for (size_t i = 0; i < fields_.size(); ++i) {
    if (fields_[i].required && !values_[i].present) {
      return absl::InvalidArgumentError(absl::StrCat("no field '", Sv(fields_[i].name), "'"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> JsonRecord::ParseNext(LineReader& lines) {
  const auto line = lines.Next();
  if (!line.ok()) return line.status();
  if (!line->has_value()) return false;
  if (absl::Status status = Parse(**line); !status.ok()) return lines.Error(status.message());
  return true;
}

absl::StatusOr<std::vector<TopField>> TopFields(std::string_view line) {
  TopHandler handler;
  if (!Json::sax_parse(line.data(), line.data() + line.size(), &handler)) {
    return absl::InvalidArgumentError(handler.error);
  }
  return std::move(handler.fields);
}

}  // namespace terrace::replay
