// bfloat16 as four bits for the exponent and a byte for the rest: most values of a tile have one of
// 15 exponents, the others are escapes (SplitZip, arXiv:2605.01708). Run-time dispatch with a
// scalar reference that is always built and tested against; all give the same bytes. Raw pointers
// in, results out; allocates nothing. Any thread.
//
// A value rotated left by one bit is its exponent in the upper byte and mantissa << 1 | sign in the
// lower, the *rest*. The code of an exponent is its place among the 15, or 15: then the exponent
// itself is the next of the escapes. Two codes a byte, the earlier in the lower four bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

inline constexpr size_t kNibbleExponents = 15;

// The exponents to give codes to: the most frequent of a sample of the values, all different.
void ChooseExponents(const uint16_t* values, size_t count, uint8_t exponents[kNibbleExponents]);

struct NibbleSink {
  uint8_t* codes = nullptr;    // (count + 1) / 2
  uint8_t* rests = nullptr;    // count
  uint8_t* escapes = nullptr;  // room for count; moved past what was written
};
// `count` is even, except in the last call for a tile. Moves the sink on.
void PackNibbles(const uint16_t* values, size_t count, const uint8_t exponents[kNibbleExponents],
                 NibbleSink* sink);

struct NibbleSource {
  const uint8_t* codes = nullptr;
  const uint8_t* rests = nullptr;
  const uint8_t* escapes = nullptr;
  const uint8_t* escapes_end = nullptr;
};
// Appends `count` values at `out` (any alignment of 2) and moves the source on; `count` is even,
// except in the last call for a tile. False when there are fewer escapes than codes say. With
// `stream`, stores go past the caches where they can, and are fenced.
bool UnpackNibbles(NibbleSource* source, const uint8_t exponents[kNibbleExponents], size_t count,
                   bool stream, uint16_t* out);

// Scalar references, and the path of machines with AVX2 alone (scalar where that is missing).
void PackNibblesScalar(const uint16_t* values, size_t count,
                       const uint8_t exponents[kNibbleExponents], NibbleSink* sink);
bool UnpackNibblesScalar(NibbleSource* source, const uint8_t exponents[kNibbleExponents],
                         size_t count, uint16_t* out);
bool UnpackNibblesAvx2(NibbleSource* source, const uint8_t exponents[kNibbleExponents],
                       size_t count, bool stream, uint16_t* out);

}  // namespace terrace::kernels
