// What both directions need of a tile: the order of its tokens in the stream, where an engine has
// them.
#pragma once

#include "kernels/gpu_tile.h"
#include "kernels/tile_rounds.h"
#include "kernels/warp.h"

namespace terrace::kernels {

inline constexpr uint32_t kTileHeaderBytes = 8;
inline constexpr uint32_t kEscapeEntryBytes = 6;

// Little-endian, at any alignment.
TERRACE_GPU uint32_t BytesAt(const uint8_t* at, uint32_t count) {
  uint32_t value = 0;
  for (uint32_t i = 0; i < count; ++i) value |= static_cast<uint32_t>(at[i]) << 8 * i;
  return value;
}

TERRACE_GPU void PutBytes(uint8_t* to, uint32_t value, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(value >> 8 * i);
}

// The 4-byte words of [data, data + bytes) at any alignment, 0 past the end. Of the memory around
// them what lies in the same aligned words is read.
template <class Warp>
class Words {
 public:
  TERRACE_GPU Words(const uint8_t* data, uint32_t bytes)
      : skew_(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data) & 3)),
        aligned_(data - skew_),
        bytes_(bytes) {}
  TERRACE_GPU uint32_t At(uint32_t i) const {
    if (4 * i >= bytes_) return 0;
    const uint32_t low = Warp::Load(aligned_ + size_t{4} * i);
    if (skew_ == 0) return low;
    const uint32_t high =
        4 * (i + 1) - skew_ < bytes_ ? Warp::Load(aligned_ + size_t{4} * (i + 1)) : 0;
    return low >> 8 * skew_ | high << (32 - 8 * skew_);
  }

 private:
  uint32_t skew_;
  const uint8_t* aligned_;
  uint32_t bytes_;
};

// Of one tile, in the memory that a block of warps shares.
struct TilePlaces {
  uint32_t ring[64];                // a stretch of the stream (kernels/tile_stream.cuh)
  float step[kTilePlaces];          // of a place's token
  int32_t shift[kTilePlaces / 32];  // of a group's tables
  uint32_t raw;                     // places below this one are of raw tokens
  uint32_t raw_at;                  // where in the tile these begin
  TileStatus status;
  int8_t level[kTilePlaces];   // of a token
  uint8_t token[kTilePlaces];  // of a place
};

// Everything else from the levels of `tokens` tokens: places are in the order of levels, equal ones
// in their own order.
template <class Warp>
TERRACE_GPU void SortPlaces(Warp& warp, uint32_t tokens, int32_t slope, int32_t lambda16,
                            TilePlaces& places) {
  warp.Sync();
  warp.Each([&](uint32_t lane) {
    for (uint32_t t = lane; t < tokens; t += 32) {
      const int32_t level = places.level[t];
      uint32_t place = 0;
      for (uint32_t u = 0; u < tokens; ++u) {
        place += places.level[u] < level || (places.level[u] == level && u < t) ? 1 : 0;
      }
      places.token[place] = static_cast<uint8_t>(t);
      places.step[place] = PowerOf16th(lambda16 - 4 * level);
    }
  });
  const uint32_t raw = warp.Sum([&](uint32_t lane) {
    uint32_t count = 0;
    for (uint32_t t = lane; t < tokens; t += 32) count += places.level[t] == kRawLevel ? 1 : 0;
    return count;
  });
  warp.Sync();
  for (uint32_t first = 0; first < tokens; first += 32) {
    const uint32_t lanes = tokens - first < 32 ? tokens - first : 32;
    const uint32_t sum = warp.Sum([&](uint32_t lane) {
      return lane < lanes ? static_cast<uint32_t>(places.level[places.token[first + lane]]) : 0;
    });
    warp.Each([&](uint32_t lane) {
      if (lane != 0) return;
      places.raw = raw;
      places.shift[first / 32] = ShiftOfGroup(static_cast<int32_t>(sum), slope, lanes, lambda16);
    });
  }
  warp.Sync();
}

// Words of low bits of a tile.
template <class Warp>
TERRACE_GPU uint32_t LowWords(Warp& warp, const GpuSection& section, uint32_t groups,
                              const TilePlaces& places) {
  const uint32_t channels = section.shape.heads * section.shape.dim;
  return warp.Sum([&](uint32_t lane) {
    uint32_t bits = 0;
    for (uint32_t c = lane; c < channels; c += 32) {
      for (uint32_t g = 0; g < groups; ++g) {
        bits += LowBitsOfTable(TableOfScale(section.scale16[c], places.shift[g]));
      }
    }
    return bits;
  });
}

TERRACE_GPU uint8_t* TokenAt(const KvPlaces& of, uint32_t token) {
  const uint32_t number = token / of.block_tokens;
  const uint64_t block = of.block_table == nullptr ? number : of.block_table[number];
  return of.base + block * of.block_stride + token % of.block_tokens * of.token_stride;
}

}  // namespace terrace::kernels
