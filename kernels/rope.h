// Rotary position embedding (Su et al., arXiv:2104.09864) undone and done again, with the same
// result on every machine: angles are fractions of a turn in 64-bit integers, and sine and cosine
// come from a polynomial of multiplications and additions that round once each (the constants are
// part of the stored format, docs/formats/chunk.md). Raw pointers; allocates
// nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// Which two values of a head turn together: value i and i + rotary_dim / 2 (GPT-NeoX, Llama in
// transformers), or 2i and 2i + 1 (GPT-J, llama2.c).
enum class RopePairing : uint8_t { kNone = 0, kHalf = 1, kInterleaved = 2 };

struct Turn {
  float cosine, sine;
};

// Taylor coefficients 1/n!, to double precision. |angle| <= pi/4: the error is below 1e-13.
constexpr double SineOf(double x) {
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

constexpr double CosineOf(double x) {
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

// Cosine and sine of `turns` / 2^64 turns. A constant expression: device code calls it too. Its
// multiplications and additions must round once each, so call it where none are contracted.
constexpr Turn TurnOfPhase(uint64_t turns) {
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

// What [first, first + positions) turn by: out[position * pairs + i] of pair i, whose angle grows
// by frequencies[i] / 2^64 turns a position.
void FillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
               Turn* out);

// Turns the first rotary_dim values of each of `heads` heads of one token, forward, or back: the
// products with the sine are rounded, then added to those with the cosine, fused.
void Rotate(float* token, size_t heads, size_t head_dim, size_t rotary_dim, RopePairing pairing,
            const Turn* turns, bool back);

}  // namespace terrace::kernels
