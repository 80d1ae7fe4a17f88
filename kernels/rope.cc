#include "kernels/rope.h"

#include <bit>

#include "kernels/clones.h"

namespace terrace::kernels {
namespace {

TERRACE_CLONES
void RotateHalf(float* head, size_t pairs, const TokenTurns& turns, float sign) {
  float* const second = head + pairs;
  const float* const cosines = turns.cosines;
  const float* const sines = turns.sines;
  for (size_t i = 0; i < pairs; ++i) {
    const float x = head[i], y = second[i];
    const float c = cosines[i], s = sign * sines[i];
    head[i] = __builtin_fmaf(x, c, -(y * s));
    second[i] = __builtin_fmaf(y, c, x * s);
  }
}

TERRACE_CLONES
void RotateInterleaved(float* head, size_t pairs, const TokenTurns& turns, float sign) {
  for (size_t i = 0; i < pairs; ++i) {
    const float x = head[2 * i], y = head[2 * i + 1];
    const float c = turns.cosines[i], s = sign * turns.sines[i];
    head[2 * i] = __builtin_fmaf(x, c, -(y * s));
    head[2 * i + 1] = __builtin_fmaf(y, c, x * s);
  }
}

}  // namespace

TERRACE_CLONES
void FillTurns(const uint64_t* __restrict frequencies, size_t pairs, uint64_t first,
               size_t positions, float* __restrict cosines, float* __restrict sines) {
  for (size_t p = 0; p < positions; ++p, cosines += pairs, sines += pairs) {
    for (size_t i = 0; i < pairs; ++i) {
      const Turn turn = TurnOfPhase((first + p) * frequencies[i]);
      cosines[i] = turn.cosine;
      sines[i] = turn.sine;
    }
  }
}

void Rotate(float* token, size_t heads, size_t head_dim, size_t rotary_dim, RopePairing pairing,
            const TokenTurns& turns, bool back) {
  const float sign = back ? -1.0f : 1.0f;
  for (size_t h = 0; h < heads; ++h) {
    float* head = token + h * head_dim;
    if (pairing == RopePairing::kHalf) RotateHalf(head, rotary_dim / 2, turns, sign);
    if (pairing == RopePairing::kInterleaved) RotateInterleaved(head, rotary_dim / 2, turns, sign);
  }
}

}  // namespace terrace::kernels
