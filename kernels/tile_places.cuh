// The order of a tile's tokens in its stream: by level, equal ones in their own order.
#pragma once

#include "kernels/gpu_tile.h"
#include "kernels/tile_rounds.h"
#include "kernels/warp.h"

namespace terrace::kernels {

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

// Everything else from the levels of `tokens` tokens.
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

}  // namespace terrace::kernels
