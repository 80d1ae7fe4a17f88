// The checks between memory and a segment file: of a record while it is read, header first and then
// piece after piece as the bytes arrive; of a payload while it is written, before each piece goes.
// Each touches only its own state and the buffers; one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

// What the header must say.
struct RecordIdentity {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t header_bytes = 0;
  uint64_t payload_bytes = 0;
  ObjectKey key;
  std::optional<Fingerprint> fingerprint;  // nullopt: any
};

class RecordRead {
 public:
  // `header` is of identity.header_bytes; `payload` has room for the payload rounded up to 4096.
  RecordRead(const RecordIdentity& identity, const uint8_t* header, const uint8_t* payload)
      : identity_(identity), header_(header), payload_(payload) {}

  // The first `bytes` of header and payload have arrived. DataLoss naming key, segment and what
  // does not match; nothing after that part counts as ready.
  absl::Status Advance(uint64_t bytes);
  uint32_t parts_ready() const { return parts_ready_; }
  // Requires that Advance was told of the whole record and was ok.
  RecordMeta TakeMeta();

 private:
  absl::Status CheckHeader();
  absl::Status CheckPieces(uint64_t arrived);
  absl::Status Mismatch(const std::string& what) const;

  const RecordIdentity identity_;
  const uint8_t* const header_;
  const uint8_t* const payload_;
  bool header_checked_ = false;
  uint32_t parts_ready_ = 0;
  uint32_t pieces_checked_ = 0;
  uint64_t next_begin_ = 0;  // of the piece to check next
  RecordHeader record_;
};

// Computes the checksums that a header needs from the payload as it is written, and so finds a
// payload that is no longer what was committed.
class RecordWrite {
 public:
  // `header` without piece_crcs; CheckMeta(header.meta) is ok. `encoded` has HeaderBytes().
  RecordWrite(RecordHeader header, Bytes encoded, const uint8_t* payload)
      : header_(std::move(header)), encoded_(encoded), payload_(payload) {}

  // The first `bytes` of the payload are about to be written; with the last of them the header is
  // encoded. DataLoss naming key and part when the payload is not what the part's checksum says.
  absl::Status Advance(uint64_t bytes);

 private:
  RecordHeader header_;
  const Bytes encoded_;
  const uint8_t* const payload_;
  uint32_t part_ = 0;        // whose pieces are being checked
  uint32_t part_crc_ = 0;    // of its pieces so far
  uint64_t next_begin_ = 0;  // of the next piece
  bool encoded_once_ = false;
};

}  // namespace terrace::nvme
