#include "tiers/nvme/block.h"

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

uint32_t CrcWithoutField(ConstBytes bytes, size_t crc_at) {
  constexpr uint8_t kZeros[4] = {};
  uint32_t crc = kernels::Crc32c(bytes.data(), crc_at);
  crc = kernels::Crc32c(kZeros, sizeof kZeros, crc);
  return kernels::Crc32c(bytes.data() + crc_at + 4, bytes.size() - crc_at - 4, crc);
}

void BeginHeader(Bytes header, const Magic& magic, const StoreId& store_id) {
  std::memset(header.data(), 0, header.size());
  Put(header.data(), magic);
  Put(header.data() + kMajorAt, kFormatMajor);
  Put(header.data() + kMinorAt, kFormatMinor);
  Put(header.data() + kStoreIdAt, store_id);
}

void SealHeader(Bytes header) { Put(header.data() + kCrcAt, CrcWithoutField(header, kCrcAt)); }

absl::Status CheckHeaderKind(ConstBytes header, const Magic& magic, const char* what) {
  if (header.size() < kBlockBytes) {
    return absl::DataLossError(absl::StrCat(what, " is ", header.size(), " bytes, not 4096"));
  }
  if (Get<Magic>(header.data()) != magic) return absl::DataLossError(absl::StrCat(what, ": magic"));
  const uint16_t major = Get<uint16_t>(header.data() + kMajorAt);
  if (major == kFormatMajor) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(what, " has format version ", major,
                                                    "; this build reads version ", kFormatMajor));
}

absl::Status CheckHeader(ConstBytes header, const Magic& magic, const char* what) {
  absl::Status status = CheckHeaderKind(header, magic, what);
  if (!status.ok()) return status;
  if (Get<uint32_t>(header.data() + kCrcAt) == CrcWithoutField(header, kCrcAt)) return status;
  return absl::DataLossError(absl::StrCat(what, ": checksum"));
}

}  // namespace terrace::nvme
