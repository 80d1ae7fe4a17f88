// Conversion between the floating-point formats of KV and float, one value at a time and by rows.
// Exact on the way in; round to nearest even on the way out, a NaN stays a NaN, magnitudes past the
// format's range become infinite. To bfloat16, magnitudes below 2^-126 become zero, as in the
// instruction VCVTNE2PS2BF16. The single ones are constant expressions: device code calls them too.
// Any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

constexpr float FloatOfBf16(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

constexpr uint16_t Bf16OfFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16) | 0x40;
  if ((bits & 0x7f800000) == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Without branches, so that loops of it become vectors: the product is exact, subnormals included.
constexpr float FloatOfF16(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value & 0x7fff) << 13;
  const auto finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite));
}

constexpr uint16_t F16OfFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x38800000) {  // below 2^-14: the sum leaves the rounded multiple of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

// `count` values each.
void FloatsOfBf16(const uint16_t* values, size_t count, float* floats);
void Bf16sOfFloat(const float* floats, size_t count, uint16_t* values);
void FloatsOfF16(const uint16_t* values, size_t count, float* floats);
void F16sOfFloat(const float* floats, size_t count, uint16_t* values);

}  // namespace terrace::kernels
