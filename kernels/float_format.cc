#include "kernels/float_format.h"

#include "kernels/clones.h"

namespace terrace::kernels {

float FloatOfF16(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t exponent = value >> 10 & 31, mantissa = value & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) {  // zero and subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t F16OfFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
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

TERRACE_CLONES
void FloatsOfBf16(const uint16_t* values, size_t count, float* floats) {
  for (size_t i = 0; i < count; ++i) floats[i] = FloatOfBf16(values[i]);
}

TERRACE_CLONES
void Bf16sOfFloat(const float* floats, size_t count, uint16_t* values) {
  for (size_t i = 0; i < count; ++i) values[i] = Bf16OfFloat(floats[i]);
}

void FloatsOfF16(const uint16_t* values, size_t count, float* floats) {
  for (size_t i = 0; i < count; ++i) floats[i] = FloatOfF16(values[i]);
}

void F16sOfFloat(const float* floats, size_t count, uint16_t* values) {
  for (size_t i = 0; i < count; ++i) values[i] = F16OfFloat(floats[i]);
}

}  // namespace terrace::kernels
