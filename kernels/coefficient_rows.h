// From an entropy coder's rounds of symbols (codec/tile_plan.h), 32 tokens a round, to a row of
// coefficients a token. Run-time dispatch on CPU features with a scalar reference that is always
// built and tested against. Raw pointers; allocates nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// What of a round's coefficients lies below its symbols: `bits` words of 32 lanes, little-endian.
struct LowBits {
  uint32_t bits = 0;  // at most 14
  const uint8_t* planes = nullptr;
};

// The rounds of some channels of 32 tokens.
struct SymbolRounds {
  const uint8_t* symbols = nullptr;  // of channel c, 0 .. 31, 32 lanes from symbols + c * stride
  size_t stride = 0;
  size_t channels = 0;
  const LowBits* low = nullptr;  // of each channel; null when none has any
};

constexpr uint32_t kNarrowBits = 3;  // with more, coefficients may not fit int8

// rows[lane * row_stride + channel] of all 32 lanes: (symbol - 15) * 2^bits - (2^bits >> 1) + the
// low bits, of which bit b of lane l is bit l of plane b; modulo the type's range. int8: bits at
// most kNarrowBits.
void UnpackRows(const SymbolRounds& rounds, size_t row_stride, int8_t* rows);
void UnpackRows(const SymbolRounds& rounds, size_t row_stride, int16_t* rows);
// A value at a time.
void UnpackRowsScalar(const SymbolRounds& rounds, size_t row_stride, int8_t* rows);
void UnpackRowsScalar(const SymbolRounds& rounds, size_t row_stride, int16_t* rows);
// The path of machines without AVX-512.
void UnpackRowsSse2(const SymbolRounds& rounds, size_t row_stride, int8_t* rows);
void UnpackRowsSse2(const SymbolRounds& rounds, size_t row_stride, int16_t* rows);

// How many of `count` bytes are `symbol`.
size_t CountSymbol(const uint8_t* symbols, size_t count, uint8_t symbol);

}  // namespace terrace::kernels
