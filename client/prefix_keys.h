// The keys of a prompt: its grain chain and the chunks cut from it. Private to client/. Immutable;
// any thread.
#pragma once

#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "client/core.h"

namespace terrace {

inline constexpr uint32_t kChunkGrains = kChunkTokens / kGrainTokens;

class PrefixKeys {
 public:
  PrefixKeys(const Salt& salt, const ObjectKey& root, absl::Span<const uint32_t> tokens,
             std::string_view extra);

  size_t full_chunks() const { return grains_.size() / kChunkGrains; }
  // Full chunks, and one of the grains that remain if any do.
  size_t chunks() const { return (grains_.size() + kChunkGrains - 1) / kChunkGrains; }
  // Keys of grains in chunk `chunk`; the last one is the chunk's key. Empty behind the end.
  absl::Span<const ObjectKey> GrainsOfChunk(size_t chunk) const;
  const ObjectKey& ChunkKey(size_t chunk) const { return GrainsOfChunk(chunk).back(); }
  const ObjectKey& ParentOf(size_t chunk) const { return chunk == 0 ? root_ : ChunkKey(chunk - 1); }
  std::vector<ObjectKey> ChunkKeys(size_t count) const;  // of the first `count` chunks

 private:
  ObjectKey root_;
  std::vector<ObjectKey> grains_;
};

// Lookup of any number of keys, in calls of what the daemon takes: one ExtentInfo for each of the
// longest present prefix.
absl::Status LookupPrefix(ClientCore& core, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                          std::vector<ExtentInfo>& extents);

}  // namespace terrace
