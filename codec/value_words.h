// Values of every dtype as words of sign and magnitude, 16 bits each, for codec 2. Exact both ways.
// Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "config/kv_geometry.h"

namespace terrace::codec {

// Bits 0 .. floor - 1 of all words of the dtype are 0; `exponent` is the lowest bit of the exponent
// (int8: where a magnitude is cut into eight).
struct WordFormat {
  uint32_t floor;
  uint32_t exponent;
};
WordFormat WordFormatOf(Dtype dtype);

// What a value has beyond its word: the lower half of float32.
inline size_t LowBytes(Dtype dtype) { return dtype == Dtype::kF32 ? 2 : 0; }

// `count` values. low: LowBytes each, or null.
void WordsOfValues(Dtype dtype, const uint8_t* values, size_t count, uint16_t* words, uint8_t* low);
void ValuesOfWords(Dtype dtype, const uint16_t* words, const uint8_t* low, size_t count,
                   uint8_t* values);

}  // namespace terrace::codec
