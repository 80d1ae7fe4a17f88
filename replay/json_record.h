// One JSON object a line, read into flat arrays of whole numbers by a table of the fields that a
// format has. Fields that are not in the table are skipped, whatever is in them. Built on the
// event parser of nlohmann-json: no tree, no allocation once the arrays have grown. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "replay/line_reader.h"

namespace terrace::replay {

enum class Shape : uint8_t {
  kNumber,  // 7, or "7"
  kList,    // [1, 2]
  kLists,   // [[1, 2], [3]]
  kNamed,   // {"a": [1, 2], "b": []}
};

struct Field {
  std::string_view name;
  Shape shape;
  bool required = true;
};

class JsonRecord {
 public:
  struct Values {
    bool present = false;
    std::vector<uint64_t> numbers;   // of all lists, in order
    std::vector<size_t> ends;        // kLists, kNamed: where in `numbers` each list ends
    std::vector<std::string> names;  // kNamed: of each list

    size_t lists() const { return ends.size(); }
    absl::Span<const uint64_t> list(size_t i) const {
      const size_t begin = i == 0 ? 0 : ends[i - 1];
      return absl::MakeConstSpan(numbers).subspan(begin, ends[i] - begin);
    }
  };

  // The fields must outlive the record.
  explicit JsonRecord(absl::Span<const Field> fields);

  // InvalidArgument when it is no JSON object, a required field is missing, a field is there twice
  // or is not of its shape; names field and column, not the line.
  absl::Status Parse(std::string_view line);

  // Parses the next line. False at the end; fails as LineReader::Next does, and as Parse does with
  // file and line in front.
  absl::StatusOr<bool> ParseNext(LineReader& lines);

  // Of the last line. `field` counts in the table.
  const Values& operator[](size_t field) const { return values_[field]; }
  // Requires kNumber and present.
  uint64_t Number(size_t field) const { return values_[field].numbers.front(); }

 private:
  class Handler;

  absl::Span<const Field> fields_;
  std::vector<Values> values_;
};

// The names of the fields at the top of a JSON object and whether each is itself an object: what
// tells formats apart. InvalidArgument when it is no JSON object.
struct TopField {
  std::string name;
  bool is_object;
};
absl::StatusOr<std::vector<TopField>> TopFields(std::string_view line);

}  // namespace terrace::replay
