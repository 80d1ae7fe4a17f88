#include "kernels/float_format.h"

#include "kernels/clones.h"

namespace terrace::kernels {

TERRACE_CLONES
void FloatsOfBf16(const uint16_t* values, size_t count, float* floats) {
  for (size_t i = 0; i < count; ++i) floats[i] = FloatOfBf16(values[i]);
}

TERRACE_CLONES
void Bf16sOfFloat(const float* floats, size_t count, uint16_t* values) {
  for (size_t i = 0; i < count; ++i) values[i] = Bf16OfFloat(floats[i]);
}

TERRACE_CLONES
void FloatsOfF16(const uint16_t* values, size_t count, float* floats) {
  for (size_t i = 0; i < count; ++i) floats[i] = FloatOfF16(values[i]);
}

void F16sOfFloat(const float* floats, size_t count, uint16_t* values) {
  for (size_t i = 0; i < count; ++i) values[i] = F16OfFloat(floats[i]);
}

}  // namespace terrace::kernels
