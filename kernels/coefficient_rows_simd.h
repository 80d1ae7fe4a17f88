// What the implementations of coefficient_rows.h share. Not for use elsewhere.
#pragma once

#include <cstring>

#include "kernels/coefficient_rows.h"

namespace terrace::kernels::coefficient_rows {

constexpr size_t kLanes = 32;

// For machines known to have the instructions.
void UnpackAvx512(const SymbolRounds& rounds, size_t row_stride, int8_t* rows);
void UnpackAvx512(const SymbolRounds& rounds, size_t row_stride, int16_t* rows);

inline LowBits LowOf(const SymbolRounds& rounds, size_t channel) {
  return rounds.low == nullptr ? LowBits{} : rounds.low[channel];
}

// The coefficients of one channel, `step` values apart.
template <typename T>
inline void UnpackChannel(const uint8_t* symbols, const LowBits& low, size_t step, T* out) {
  uint32_t planes[16];
  if (low.bits != 0) std::memcpy(planes, low.planes, low.bits * sizeof *planes);
  const int32_t base = -(15 << low.bits) - ((1 << low.bits) >> 1);
  for (size_t lane = 0; lane < kLanes; ++lane) {
    int32_t value = (symbols[lane] << low.bits) + base;
    for (uint32_t b = 0; b < low.bits; ++b) {
      value += static_cast<int32_t>((planes[b] >> lane & 1) << b);
    }
    out[lane * step] = static_cast<T>(value);
  }
}

// Channels whose coefficients do not fit the bytes that vectors work on.
inline void UnpackWideChannels(const SymbolRounds& rounds, size_t row_stride, int16_t* rows) {
  for (size_t c = 0; rounds.low != nullptr && c < rounds.channels; ++c) {
    if (rounds.low[c].bits <= kNarrowBits) continue;
    UnpackChannel(rounds.symbols + c * rounds.stride, rounds.low[c], row_stride, rows + c);
  }
}
inline void UnpackWideChannels(const SymbolRounds&, size_t, int8_t*) {}

}  // namespace terrace::kernels::coefficient_rows
