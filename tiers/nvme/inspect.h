// Looks at a store that no daemon serves, and checks every byte that has a checksum. Changes
// nothing. For `terrace store inspect`; blocks; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/record.h"
#include "tiers/nvme/segment_format.h"
#include "tiers/nvme/system.h"

namespace terrace::nvme {

// What is not as the format says. Torn records of segments that are not sealed are none: their
// write never ended.
struct Problem {
  std::string file;     // within the store's directory
  uint64_t offset = 0;  // in the file; 0 also where there is none
  std::string what;
};

struct InspectedRecord {
  enum class State : uint8_t {
    kLive,
    kErased,   // noted, or no longer named by the segment's row or footer
    kTorn,     // its write never ended
    kDamaged,  // it was whole once: a problem
  };
  State state = State::kLive;
  uint64_t offset = 0, header_bytes = 0, sequence = 0;
  RecordMeta meta;  // of a damaged one maybe only what the index says
};

struct InspectedSegment {
  enum class State : uint8_t { kClean, kOpen, kSealed, kForeign };
  State state = State::kClean;
  uint32_t id = 0;
  uint64_t generation = 0, bytes = 0;
  bool footer = false, row = false;  // it has one of its generation, which checks
  // Headers included; dead is what was written and is not live.
  uint64_t live_bytes = 0, dead_bytes = 0, live_records = 0, dead_records = 0, pinned_records = 0;
  std::vector<InspectedRecord> records;  // by offset
};

struct SuperblockCopy {
  std::string file;
  absl::StatusOr<Superblock> superblock;
};

struct StoreReport {
  StoreId store_id{};
  std::vector<SuperblockCopy> superblocks;
  bool index_complete = false;  // false also when there is none: a start reads the segments
  uint64_t rows = 0, stale_rows = 0, notes = 0;
  std::vector<InspectedSegment> segments;  // by id
  std::vector<Problem> problems;
};

// `progress` is told of the bytes of segments looked at so far, of all there are. NotFound when
// the directory is no store; FailedPrecondition when a daemon serves it, or it is of another
// version.
absl::StatusOr<StoreReport> InspectStore(System& system, const std::string& directory,
                                         absl::FunctionRef<void(uint64_t, uint64_t)> progress);

}  // namespace terrace::nvme
