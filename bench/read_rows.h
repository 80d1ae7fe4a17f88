// Reads back the "rows" of a JSON file in the form that RenderJson writes: a suite measured by
// another program (a Python script) joins the table that way.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/bench.h"

namespace terrace::bench {

// InvalidArgument when the text is not a JSON object with a "rows" array of objects; naming the
// row and the member when a row lacks its name or a figure.
absl::StatusOr<std::vector<Row>> ReadRows(std::string_view json);

}  // namespace terrace::bench
