// What all stored structures of the NVMe tier are made of: little-endian fields at fixed offsets,
// blocks that begin alike, checksums. Pure functions over bytes; any thread.
// docs/formats/segment.md says the same in words.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace terrace::nvme {

static_assert(std::endian::native == std::endian::little, "stored integers are little-endian");

inline constexpr uint64_t kBlockBytes = 4096;  // unit of every offset and of O_DIRECT
inline constexpr uint16_t kFormatMajor = 2;
inline constexpr uint16_t kFormatMinor = 0;

// Random, one a store. It is in every header, so a block that a client stored as payload is never
// taken for a header: clients do not know it.
using StoreId = std::array<uint8_t, 16>;

using Magic = std::array<char, 8>;
using Bytes = absl::Span<uint8_t>;
using ConstBytes = absl::Span<const uint8_t>;

template <typename T>
void Put(uint8_t* to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(to, &value, sizeof value);
}

template <typename T>
T Get(const uint8_t* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Offsets of what every header begins with; its own fields follow.
inline constexpr size_t kMajorAt = 8;
inline constexpr size_t kMinorAt = 10;
inline constexpr size_t kCrcAt = 12;
inline constexpr size_t kStoreIdAt = 16;
inline constexpr size_t kFieldsAt = 32;

// Zeroes `header`, whole blocks, and puts what it begins with.
void BeginHeader(Bytes header, const Magic& magic, const StoreId& store_id);
// Its checksum: the last thing to put.
void SealHeader(Bytes header);
// Whether magic and major are those of `what`: FailedPrecondition for another major, DataLoss for
// anything else. Looks at the first block only; a later major may compute checksums differently.
absl::Status CheckHeaderKind(ConstBytes header, const Magic& magic, const char* what);
// The same and the checksum of all of `header`.
absl::Status CheckHeader(ConstBytes header, const Magic& magic, const char* what);

// CRC32C of `bytes` with the four bytes at `crc_at` taken as zero.
uint32_t CrcWithoutField(ConstBytes bytes, size_t crc_at);

inline absl::Status AsDataLoss(const absl::Status& status) {
  return status.ok() ? status : absl::DataLossError(status.message());
}

}  // namespace terrace::nvme
