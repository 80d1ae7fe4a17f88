// One segment file: its descriptor and the blocking operations on it. Blocking: only at Open, in
// the destructor of the tier and on the meta thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

// Shared by the loop (who places records), the io thread (who moves them) and the meta thread (who
// creates the file). Everything is set before the next thread is handed the file.
struct SegmentFile {
  SegmentFile() = default;
  SegmentFile(const SegmentFile&) = delete;
  SegmentFile& operator=(const SegmentFile&) = delete;
  ~SegmentFile();  // closes the descriptor

  std::string path;
  uint32_t id = 0;
  uint64_t generation = 1;
  uint64_t bytes = 0;  // length of the file, a multiple of 4096
  int fd = -1;         // O_DIRECT

  // Of the io thread, once the file is shared. A recovered file is ready from the start.
  enum class State : uint8_t { kPreparing, kReady, kFailed };
  State state = State::kPreparing;
  absl::Status failure;  // why, when kFailed
};

// Statuses of failed system calls: no space of any sort is ResourceExhausted.
absl::Status ErrnoStatus(int error, const std::string& what);

// Makes the name durable and the space certain: create, allocate, header, fdatasync, fsync of the
// directory. On failure nothing is left behind. ResourceExhausted when there is no space.
absl::Status CreateSegmentFile(SegmentFile& file, const StoreId& store_id);
// Starts a new generation of a file whose records are no longer needed.
absl::Status RewriteSegmentHeader(const SegmentFile& file, const StoreId& store_id);

struct FoundSegment {
  std::shared_ptr<SegmentFile> file;
  // Whether the header names this store and file. Without it the generation is that of the records.
  bool header_ok = false;
};
// Every file in `directory` with a segment's name, opened, in order of id; others are left alone.
absl::StatusOr<std::vector<FoundSegment>> OpenSegmentFiles(const std::string& directory,
                                                           const StoreId& store_id);

// Visits the headers of the records of one segment, for rebuilding the index. Blocks that hold no
// header are stepped over: a write that never finished may lie before one that did.
using VisitHeader = absl::FunctionRef<void(uint64_t offset, const RecordHeader& header)>;
absl::Status ScanSegment(const SegmentFile& file, const StoreId& store_id, VisitHeader visit);

// Reads [offset, offset + bytes) of a segment file; both multiples of 4096, `to` aligned to it.
// DataLoss when the file ends before.
absl::Status ReadBlocks(const SegmentFile& file, uint64_t offset, uint64_t bytes, uint8_t* to);

}  // namespace terrace::nvme
