#include "tiers/nvme/record_read.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

absl::Status RecordRead::Mismatch(const std::string& what) const {
  return absl::DataLossError(absl::StrCat("nvme record ", identity_.key.ToHex(), " in ",
                                          SegmentName(identity_.segment_id), ": ", what));
}

absl::Status RecordRead::CheckHeader() {
  absl::StatusOr<RecordHeader> header = DecodeRecordHeader({header_, kBlockBytes});
  if (!header.ok()) return Mismatch(std::string(header.status().message()));
  if (header->store_id != identity_.store_id) return Mismatch("header of another store");
  if (header->segment_id != identity_.segment_id || header->generation != identity_.generation) {
    return Mismatch(absl::StrCat("header of segment ", header->segment_id, " generation ",
                                 header->generation, ", not generation ", identity_.generation));
  }
  if (header->meta.key != identity_.key) {
    return Mismatch(absl::StrCat("header of object ", header->meta.key.ToHex()));
  }
  if (header->meta.fingerprint != identity_.fingerprint) return Mismatch("layout fingerprint");
  if (header->meta.payload_bytes != identity_.payload_bytes) {
    return Mismatch(absl::StrCat("header of ", header->meta.payload_bytes, " payload bytes, not ",
                                 identity_.payload_bytes));
  }
  meta_ = std::move(header->meta);
  return absl::OkStatus();
}

absl::Status RecordRead::Advance(uint64_t bytes) {
  if (bytes < kBlockBytes) return absl::OkStatus();
  if (!header_checked_) {
    absl::Status status = CheckHeader();
    if (!status.ok()) return status;
    header_checked_ = true;
  }
  const uint64_t arrived = bytes - kBlockBytes;
  while (parts_ready_ < meta_.part_ends.size() && meta_.part_ends[parts_ready_] <= arrived) {
    const uint64_t begin =
        parts_ready_ == 0 ? 0 : AlignUp(meta_.part_ends[parts_ready_ - 1], kPartAlignment);
    const uint64_t end = meta_.part_ends[parts_ready_];
    if (kernels::Crc32c(payload_ + begin, end - begin) != meta_.part_crcs[parts_ready_]) {
      return Mismatch(absl::StrCat("checksum of part ", parts_ready_, " (payload bytes ", begin,
                                   " .. ", end, ")"));
    }
    ++parts_ready_;
  }
  return absl::OkStatus();
}

RecordMeta RecordRead::TakeMeta() {
  meta_.grain_filters = GrainFilters(meta_, payload_);
  return std::move(meta_);
}

}  // namespace terrace::nvme
