// A store of very many small records, as the daemon finds it at its start; and what there is to
// read of it on the device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "config/kv_geometry.h"
#include "config/object_key.h"

namespace terrace::bench {

inline constexpr uint32_t kRecordTokens = 48;
inline constexpr uint32_t kRecordGrains = kRecordTokens / kGrainTokens;
inline constexpr uint64_t kRecordPayloadBytes = 4096;

// Of the records: K and V of one layer and the identity part make 4 KiB.
KvGeometry RecordGeometry();

// Writes `count` records with random keys, of the tenant "default", through an NvmeTier with the
// daemon's default options. Returns some of their keys.
absl::StatusOr<std::vector<ObjectKey>> MakeRecordStore(const std::string& directory,
                                                       uint64_t capacity_bytes, uint64_t count);

struct FileRange {
  std::string path;
  uint64_t offset = 0, bytes = 0;
};
// The footers of the store's sealed segments.
absl::StatusOr<std::vector<FileRange>> FootersOf(const std::string& directory);

// Bytes of the files in the store's index, and forgets them in the page cache.
absl::StatusOr<uint64_t> DropIndexFromCache(const std::string& directory);
std::string IndexOf(const std::string& directory);

}  // namespace terrace::bench
