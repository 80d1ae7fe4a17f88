// From a row of coefficients a token to an entropy coder's rounds of symbols, 32 tokens a round:
// the inverse of kernels/coefficient_rows.h. Run-time dispatch on CPU features with a scalar
// reference that is always built and tested against. Raw pointers; allocates nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rans.h"

namespace terrace::kernels {

// Some channels of up to 32 tokens. What is said of channel c is at [c * step].
struct RoundsToPack {
  const int16_t* const* rows = nullptr;  // of each lane
  size_t lanes = 0;                      // 1 .. 32
  size_t channels = 0;
  size_t step = 0;
  const RansTables* bank = nullptr;
  const uint8_t* tables = nullptr;    // ids
  const uint8_t* low_bits = nullptr;  // of each table, at most 9
  // Results. 32 symbols a channel: with b low bits, ((coefficient + (2^b >> 1)) >> b) + 15, or 31,
  // an escape, where that is not 0 .. 30 or the table cannot code it; 0 for lanes there are not.
  uint8_t* symbols = nullptr;
  uint32_t* escapes = nullptr;  // lanes that escaped
  // The low bits of what did not escape: bit l of planes[plane_at + i] is bit i of lane l. Null
  // when no table has any.
  const uint32_t* plane_at = nullptr;
  uint32_t* planes = nullptr;
};

void PackRounds(const RoundsToPack& rounds);
void PackRoundsScalar(const RoundsToPack& rounds);

}  // namespace terrace::kernels
