#include "tiers/nvme/record_check.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "tiers/nvme/segment_format.h"

namespace terrace::nvme {

absl::Status RecordRead::Mismatch(const std::string& what) const {
  return absl::DataLossError(absl::StrCat("nvme record ", identity_.key.ToHex(), " in ",
                                          SegmentName(identity_.segment_id), ": ", what));
}

absl::Status RecordRead::CheckHeader() {
  absl::StatusOr<RecordHeader> header = DecodeRecordHeader({header_, identity_.header_bytes});
  if (!header.ok()) return Mismatch(std::string(header.status().message()));
  if (header->store_id != identity_.store_id) return Mismatch("header of another store");
  if (header->segment_id != identity_.segment_id || header->generation != identity_.generation) {
    return Mismatch(absl::StrCat("header of segment ", header->segment_id, " generation ",
                                 header->generation, ", not generation ", identity_.generation));
  }
  if (header->meta.key != identity_.key) {
    return Mismatch(absl::StrCat("header of object ", header->meta.key.ToHex()));
  }
  if (header->meta.fingerprint != identity_.fingerprint.value_or(header->meta.fingerprint))
    return Mismatch("layout fingerprint");
  if (header->meta.payload_bytes != identity_.payload_bytes) {
    return Mismatch(absl::StrCat("header of ", header->meta.payload_bytes, " payload bytes, not ",
                                 identity_.payload_bytes));
  }
  if (HeaderBytes(header->meta.part_ends) != identity_.header_bytes) {
    return Mismatch(absl::StrCat("header of another length than ", identity_.header_bytes));
  }
  record_ = *std::move(header);
  return absl::OkStatus();
}

absl::Status RecordRead::CheckPieces(uint64_t arrived) {
  const std::vector<uint64_t>& ends = record_.meta.part_ends;
  while (parts_ready_ < ends.size()) {
    const uint64_t part_end = ends[parts_ready_];
    while (next_begin_ < part_end) {
      const uint64_t end = std::min(next_begin_ + kCrcPieceBytes, part_end);
      if (end > arrived) return absl::OkStatus();
      const uint32_t crc = kernels::Crc32c(payload_ + next_begin_, end - next_begin_);
      if (crc != record_.piece_crcs[pieces_checked_]) {
        return Mismatch(absl::StrCat("checksum of part ", parts_ready_, " (payload bytes ",
                                     next_begin_, " .. ", end, ")"));
      }
      ++pieces_checked_;
      next_begin_ = end;
    }
    ++parts_ready_;
    next_begin_ = AlignUp(part_end, kPartAlignment);
  }
  return absl::OkStatus();
}

absl::Status RecordRead::Advance(uint64_t bytes) {
  if (bytes < identity_.header_bytes) return absl::OkStatus();
  if (!header_checked_) {
    absl::Status status = CheckHeader();
    if (!status.ok()) return status;
    header_checked_ = true;
  }
  return CheckPieces(bytes - identity_.header_bytes);
}

RecordMeta RecordRead::TakeMeta() {
  record_.meta.grain_filters = GrainFilters(record_.meta, payload_);
  return std::move(record_.meta);
}

absl::Status RecordWrite::Advance(uint64_t bytes) {
  const RecordMeta& meta = header_.meta;
  while (part_ < meta.part_ends.size()) {
    const uint64_t part_end = meta.part_ends[part_];
    while (next_begin_ < part_end) {
      const uint64_t end = std::min(next_begin_ + kCrcPieceBytes, part_end);
      if (end > bytes) return absl::OkStatus();
      const uint32_t crc = kernels::Crc32c(payload_ + next_begin_, end - next_begin_);
      part_crc_ = kernels::Crc32cConcat(part_crc_, crc, end - next_begin_);
      header_.piece_crcs.push_back(crc);
      next_begin_ = end;
    }
    if (part_crc_ != meta.part_crcs[part_]) {
      return absl::DataLossError(absl::StrCat("object ", meta.key.ToHex(),
                                              " was not written: part ", part_,
                                              " is not what its checksum says"));
    }
    part_crc_ = 0;
    next_begin_ = AlignUp(part_end, kPartAlignment);
    ++part_;
  }
  if (bytes >= meta.payload_bytes && !std::exchange(encoded_once_, true)) {
    EncodeRecordHeader(header_, encoded_);
  }
  return absl::OkStatus();
}

}  // namespace terrace::nvme
