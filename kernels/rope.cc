#include "kernels/rope.h"

#include "kernels/clones.h"

namespace terrace::kernels {
namespace {

TERRACE_CLONES
void RotateHalf(float* head, size_t pairs, const Turn* turns, float sign) {
  float* const second = head + pairs;
  for (size_t i = 0; i < pairs; ++i) {
    const float x = head[i], y = second[i];
    const float c = turns[i].cosine, s = sign * turns[i].sine;
    head[i] = __builtin_fmaf(x, c, -(y * s));
    second[i] = __builtin_fmaf(y, c, x * s);
  }
}

TERRACE_CLONES
void RotateInterleaved(float* head, size_t pairs, const Turn* turns, float sign) {
  for (size_t i = 0; i < pairs; ++i) {
    const float x = head[2 * i], y = head[2 * i + 1];
    const float c = turns[i].cosine, s = sign * turns[i].sine;
    head[2 * i] = __builtin_fmaf(x, c, -(y * s));
    head[2 * i + 1] = __builtin_fmaf(y, c, x * s);
  }
}

}  // namespace

TERRACE_CLONES
void FillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
               Turn* out) {
  for (size_t p = 0; p < positions; ++p) {
    for (size_t i = 0; i < pairs; ++i) {
      out[p * pairs + i] = TurnOfPhase((first + p) * frequencies[i]);
    }
  }
}

void Rotate(float* token, size_t heads, size_t head_dim, size_t rotary_dim, RopePairing pairing,
            const Turn* turns, bool back) {
  const float sign = back ? -1.0f : 1.0f;
  for (size_t h = 0; h < heads; ++h) {
    float* head = token + h * head_dim;
    if (pairing == RopePairing::kHalf) RotateHalf(head, rotary_dim / 2, turns, sign);
    if (pairing == RopePairing::kInterleaved) RotateInterleaved(head, rotary_dim / 2, turns, sign);
  }
}

}  // namespace terrace::kernels
