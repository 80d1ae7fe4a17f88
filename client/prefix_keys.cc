#include "client/prefix_keys.h"

#include <algorithm>

namespace terrace {

PrefixKeys::PrefixKeys(const Salt& salt, const ObjectKey& root, absl::Span<const uint32_t> tokens,
                       std::string_view extra)
    : root_(root), grains_(GrainKeys(salt, root, tokens, extra)) {}

absl::Span<const ObjectKey> PrefixKeys::GrainsOfChunk(size_t chunk) const {
  if (chunk >= chunks()) return {};
  return absl::MakeConstSpan(grains_).subspan(chunk * kChunkGrains, kChunkGrains);
}

std::vector<ObjectKey> PrefixKeys::ChunkKeys(size_t count) const {
  std::vector<ObjectKey> keys;
  keys.reserve(count);
  for (size_t i = 0; i < count; ++i) keys.push_back(ChunkKey(i));
  return keys;
}

absl::Status LookupPrefix(ClientCore& core, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                          std::vector<ExtentInfo>& extents) {
  const size_t batch = core.welcome().max_keys_per_call;
  for (size_t begin = 0; begin < keys.size() && extents.size() == begin; begin += batch) {
    absl::Status found = core.connection().Lookup(layout_id, keys.subspan(begin, batch), extents);
    if (!found.ok()) return found;
  }
  return absl::OkStatus();
}

}  // namespace terrace
