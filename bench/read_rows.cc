#include "bench/read_rows.h"

#include "absl/strings/str_cat.h"
#include "bench/json_fields.h"

namespace terrace::bench {
namespace {

absl::StatusOr<Row> ReadRow(const nlohmann::json& object, size_t number) {
  Row row;
  row.name = Text(object, "name").value_or("");
  if (row.name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("row ", number, " has no name"));
  }
  row.unit = Text(object, "unit").value_or("");
  row.reference_name = Text(object, "reference_name").value_or("");
  row.note = Text(object, "note").value_or("");
  row.pairs = static_cast<uint64_t>(Number(object, "pairs").value_or(0));
  const auto figure = [&](const char* member, double& to) {
    const std::optional<double> value = Number(object, member);
    to = value.value_or(0);
    return value.has_value() ? absl::OkStatus()
                             : absl::InvalidArgumentError(absl::StrCat(
                                   "row ", number, " (", row.name, ") has no number ", member));
  };
  absl::Status status = figure("value", row.value);
  status.Update(figure("reference_value", row.reference_value));
  status.Update(figure("ratio_median", row.ratio_median));
  status.Update(figure("ratio_min", row.ratio_min));
  status.Update(figure("ratio_max", row.ratio_max));
  if (!status.ok()) return status;
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> ReadRows(std::string_view json) {
  const nlohmann::json parsed = ParseJson(json);
  const nlohmann::json* list = Member(parsed, "rows");
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError("not a JSON object with an array \"rows\"");
  }
  std::vector<Row> rows;
  for (const nlohmann::json& object : *list) {
    auto row = ReadRow(object, rows.size());
    if (!row.ok()) return row.status();
    rows.push_back(*std::move(row));
  }
  return rows;
}

}  // namespace terrace::bench
