// Conversion between the floating-point formats of KV and float, one value at a time and by rows.
// Exact on the way in; round to nearest even on the way out, a NaN stays a NaN, magnitudes past the
// format's range become infinite. To bfloat16, magnitudes below 2^-126 become zero, as in the
// instruction VCVTNE2PS2BF16. Any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

inline float FloatOfBf16(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

inline uint16_t Bf16OfFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16) | 0x40;
  if ((bits & 0x7f800000) == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float FloatOfF16(uint16_t value);
uint16_t F16OfFloat(float value);

// `count` values each.
void FloatsOfBf16(const uint16_t* values, size_t count, float* floats);
void Bf16sOfFloat(const float* floats, size_t count, uint16_t* values);
void FloatsOfF16(const uint16_t* values, size_t count, float* floats);
void F16sOfFloat(const float* floats, size_t count, uint16_t* values);

}  // namespace terrace::kernels
