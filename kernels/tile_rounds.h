// The integers that encoder and decoder, on a CPU and on a GPU, derive alike: which table codes
// which round of a tile, and the step of a token. docs/formats/chunk.md, "Rounds of a tile".
// Constant expressions, so that device code may call them. Any thread.
#pragma once

#include <bit>
#include <cstdint>

namespace terrace::kernels {

inline constexpr uint32_t kScaleTables = 61;    // tables 0 .. 60 by scale, in steps of 1/4 octave
inline constexpr uint32_t kLevelTable = 61;     // of token levels
inline constexpr int32_t kSmallestScale = -20;  // table 0: sigma is 2^(-20/4) steps
inline constexpr int32_t kRawLevel = -16;       // the token's values are stored as they are
inline constexpr int32_t kLowestLevel = -15, kHighestLevel = 15;  // quarter octaves of precision
inline constexpr uint32_t kZeroSymbol = 15, kEscapeSymbol = 31;

constexpr int32_t FloorDivide(int32_t a, int32_t b) {  // b > 0
  return a / b - (a % b < 0 ? 1 : 0);
}

// What a group's tables are shifted by: its mean level, as far as scales follow levels. `levels` is
// the sum of those of its `lanes` tokens; |slope| <= 1024.
constexpr int32_t ShiftOfGroup(int32_t levels, int32_t slope, uint32_t lanes, int32_t lambda16) {
  return FloorDivide(levels * 4 * slope, 256 * static_cast<int32_t>(lanes)) - lambda16;
}

// The table of a coefficient of scale16 in a group.
constexpr uint32_t TableOfScale(int32_t scale16, int32_t shift) {
  const int32_t table = ((scale16 + shift + 2) >> 2) - kSmallestScale;
  const int32_t last = static_cast<int32_t>(kScaleTables) - 1;
  return static_cast<uint32_t>(table < 0 ? 0 : table > last ? last : table);
}

// Bits below the symbol that are stored as they are.
constexpr uint32_t LowBitsOfTable(uint32_t table) {
  const int32_t scale = static_cast<int32_t>(table) + kSmallestScale;
  return table < kScaleTables && scale >= 8 ? static_cast<uint32_t>(scale / 4 - 1) : 0;
}

// 2^(exponent16 / 16), rounded to float, the same everywhere. |exponent16| <= 2000.
constexpr float PowerOf16th(int32_t exponent16) {
  constexpr float kRoots[16] = {0x1p+0f,        0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
                                0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
                                0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
                                0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  const int32_t whole = FloorDivide(exponent16, 16);
  const int32_t biased = whole < -126 ? 1 : whole > 127 ? 254 : whole + 127;
  return std::bit_cast<float>(static_cast<uint32_t>(biased) << 23) *
         kRoots[exponent16 - 16 * whole];
}

}  // namespace terrace::kernels
