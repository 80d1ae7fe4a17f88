// What a container says of the KV it holds. Plain values; any thread.
#pragma once

#include <cstdint>

#include "config/kv_geometry.h"

namespace terrace::codec {

inline constexpr uint32_t kTileTokens = 128;

// Sections are layer 0 K, layer 0 V, layer 1 K, ...; section s holds [tokens, heads, dim(s)] or, in
// head-major order, [heads, tokens, dim(s)].
struct KvShape {
  Dtype dtype = Dtype::kBf16;
  KvOrder order = KvOrder::kTokenMajor;
  uint32_t layers = 0, heads = 0, k_dim = 0, v_dim = 0;  // in the ranges of KvGeometry
  uint32_t tokens = 0;                                   // 0 .. kMaxChunkTokens
  uint64_t position = 0;                                 // of the first token

  uint32_t Sections() const { return 2 * layers; }
  uint32_t Dim(uint32_t section) const { return section % 2 == 0 ? k_dim : v_dim; }
  uint32_t Channels(uint32_t section) const { return heads * Dim(section); }
  uint64_t SectionBytes(uint32_t section) const {
    return uint64_t{tokens} * Channels(section) * DtypeBytes(dtype);
  }
  uint32_t Tiles() const { return (tokens + kTileTokens - 1) / kTileTokens; }
  uint32_t TileTokens(uint32_t tile) const {
    const uint32_t left = tokens - tile * kTileTokens;
    return left < kTileTokens ? left : kTileTokens;
  }
};

}  // namespace terrace::codec
