// One segment file: its descriptor and the blocking operations on it. Blocking: only at Open, in
// the destructor of the tier, on the meta thread and in offline tools.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/buffer.h"
#include "tiers/nvme/record.h"
#include "tiers/nvme/segment_format.h"
#include "tiers/nvme/system.h"

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

// The status of a failed system call, `error` positive. No space of any sort is ResourceExhausted,
// an I/O error Unavailable.
absl::Status ErrnoStatus(int error, const std::string& what);

// Every segment keeps a descriptor open: raises the process's limit for so many.
// FailedPrecondition when it may not be raised as far.
absl::Status AllowSegments(uint64_t segments);

// Makes the name durable and the space certain: create, allocate, header, fdatasync, fsync of the
// directory. On failure nothing is left behind. ResourceExhausted when there is no space.
absl::Status CreateSegmentFile(System& system, SegmentFile& file, const StoreId& store_id);
// Starts a new generation of a file whose records are no longer needed.
absl::Status RewriteSegmentHeader(System& system, const SegmentFile& file, const StoreId& store_id);

struct FoundSegment {
  std::shared_ptr<SegmentFile> file;
  // Whether the header names this store and file. Without it the generation is that of the records.
  bool header_ok = false;
  bool foreign = false;     // the header checks and names another store
  bool unreadable = false;  // the device did not give the header
};
// Every file in `directory` with a segment's name, opened, in order of id; others are left alone.
// `read_only`: for tools that change nothing.
absl::StatusOr<std::vector<FoundSegment>> OpenSegmentFiles(System& system,
                                                           const std::string& directory,
                                                           const StoreId& store_id,
                                                           bool read_only = false);

// The id that most headers of the segments in `directory` carry; nullopt without any.
std::optional<StoreId> StoreIdOfSegments(System& system, const std::string& directory);

// Visits the records of the file's generation in order, for when there is no footer. `whole` says
// whether the payload is there and checks. Blocks that hold no header are stepped over: a write
// that never finished may lie before one that did. Unavailable: not all of the file can be read.
struct ScannedRecord {
  uint64_t offset;
  const RecordHeader& header;  // with grain_filters when whole
  bool whole;
};
using VisitRecord = absl::FunctionRef<void(const ScannedRecord& record)>;
absl::Status ScanSegment(System& system, const SegmentFile& file, const StoreId& store_id,
                         VisitRecord visit);
// The newest generation among the file's records, for when its header does not check; 0 without
// any. Unavailable as above.
absl::StatusOr<uint64_t> ScanForGeneration(System& system, const SegmentFile& file,
                                           const StoreId& store_id);

// The last block of a sealed segment. DataLoss when it has no footer of this store, file and
// generation.
absl::StatusOr<Footer> ReadFooter(System& system, const SegmentFile& file, const StoreId& store_id);
struct FooterEntries {
  kernels::AlignedBuffer memory;
  std::string_view entries;  // in it
};
// DataLoss when they do not check, or there is no footer.
absl::StatusOr<FooterEntries> ReadFooterEntries(System& system, const SegmentFile& file,
                                                const absl::StatusOr<Footer>& footer);

// Reads [offset, offset + bytes) of a segment file; both multiples of 4096, `to` aligned to it.
// DataLoss when the file ends before.
absl::Status ReadBlocks(System& system, const SegmentFile& file, uint64_t offset, uint64_t bytes,
                        uint8_t* to);

}  // namespace terrace::nvme
