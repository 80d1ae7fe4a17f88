// Cosine and sine of a 64-bit fraction of a turn, with the same bits on every machine: additions
// and multiplications in binary64 that round once each, as docs/formats/chunk.md has them. Constant
// expressions, so that device code may call them; call them only where nothing is contracted. Any
// thread.
#pragma once

#include <bit>
#include <cstdint>

namespace terrace::kernels {

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

// Of `turns` / 2^64 turns. Without branches, so that loops of it become vectors: of quadrants
// 0 .. 3 the result is (cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos).
constexpr Turn TurnOfPhase(uint64_t turns) {
  const uint64_t quadrant = (turns + (uint64_t{1} << 61)) >> 62;
  const auto rest = static_cast<int64_t>(turns - (quadrant << 62));
  const double angle = static_cast<double>(rest) * 3.4061215800865545e-19;  // 2 pi / 2^64
  const auto sine = std::bit_cast<uint64_t>(SineOf(angle));
  const auto cosine = std::bit_cast<uint64_t>(CosineOf(angle));
  const uint64_t swap = (sine ^ cosine) & (0 - (quadrant & 1));
  const uint64_t c = cosine ^ swap ^ ((quadrant + 1) >> 1 << 63);
  const uint64_t s = sine ^ swap ^ (quadrant >> 1 << 63);
  return {static_cast<float>(std::bit_cast<double>(c)),
          static_cast<float>(std::bit_cast<double>(s))};
}

}  // namespace terrace::kernels
