#include "kernels/rope.h"

#include "kernels/clones.h"

namespace terrace::kernels {
namespace {

// Taylor coefficients 1/n!, to double precision. |angle| <= pi/4: the error is below 1e-13.
double SineOf(double x) {
  const double s = x * x;
  double p = 1.6059043836821613e-10;
  p = p * s + -2.505210838544172e-08;
  p = p * s + 2.7557319223985893e-06;
  p = p * s + -0.0001984126984126984;
  p = p * s + 0.008333333333333333;
  p = p * s + -0.16666666666666666;
  p = p * s + 1.0;
  return p * x;
}

double CosineOf(double x) {
  const double s = x * x;
  double p = -1.1470745597729725e-11;
  p = p * s + 2.08767569878681e-09;
  p = p * s + -2.755731922398589e-07;
  p = p * s + 2.48015873015873e-05;
  p = p * s + -0.001388888888888889;
  p = p * s + 0.041666666666666664;
  p = p * s + -0.5;
  return p * s + 1.0;
}

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

Turn TurnOfPhase(uint64_t turns) {
  const uint64_t quadrant = (turns + (uint64_t{1} << 61)) >> 62;
  const auto rest = static_cast<int64_t>(turns - (quadrant << 62));
  const double angle = static_cast<double>(rest) * 3.4061215800865545e-19;  // 2 pi / 2^64
  const auto sine = static_cast<float>(SineOf(angle));
  const auto cosine = static_cast<float>(CosineOf(angle));
  switch (quadrant & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

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
