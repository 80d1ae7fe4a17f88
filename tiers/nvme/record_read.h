// Verification of one record while it is read: header first, then part after part as the bytes
// arrive. Touches only its own state and the destination; one thread at a time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

// What the header must say.
struct RecordIdentity {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t payload_bytes = 0;
  ObjectKey key;
  Fingerprint fingerprint{};
};

class RecordRead {
 public:
  // `header` is one block; `payload` has room for the payload rounded up to 4096.
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
  absl::Status Mismatch(const std::string& what) const;

  const RecordIdentity identity_;
  const uint8_t* const header_;
  const uint8_t* const payload_;
  bool header_checked_ = false;
  uint32_t parts_ready_ = 0;
  RecordMeta meta_;
};

}  // namespace terrace::nvme
