// What Open does to get from files to a trusted index. Blocking.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/meta_store.h"
#include "tiers/nvme/segment_file.h"
#include "tiers/nvme/store_directory.h"

namespace terrace::nvme {

// Opens the index of the segments in `found`. One that is missing, unreadable or of another store
// is moved aside and rebuilt from the record headers in the segments. Generations of segments whose
// header does not check are filled in from their records.
absl::StatusOr<std::unique_ptr<MetaStore>> OpenIndex(const StoreDirectory& directory,
                                                     std::vector<FoundSegment>& found);

// Visits the rows whose record lies whole in a segment of the same generation, in order of segment
// and offset; deletes the others and returns how many there were.
using VisitRow = absl::FunctionRef<void(const RowKey& key, const IndexRow& row)>;
absl::StatusOr<uint64_t> LoadRows(MetaStore& index, const std::vector<FoundSegment>& found,
                                  VisitRow visit);

}  // namespace terrace::nvme
