// Between the order of an entropy coder's rounds and tokens (codec/tile_plan.h). Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// 32 coefficients of a round: (symbol - 15) * 2^bits - (2^bits >> 1) + the low bits, bit b of lane
// l being bit l of planes[b]; bits at most 15. Modulo 2^16.
void CoefficientsOfSymbols(const uint8_t* symbols, uint32_t bits, const uint32_t* planes,
                           int16_t* out);

// rounds[channel][32] of 32 places to tokens: out[token_of_lane[lane]][channel] for the first
// `lanes` lanes. `stride` is between the rounds of two channels, in values.
void TransposeLanes(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                    const uint8_t* token_of_lane, int16_t* out);
// The same, a value at a time.
void TransposeLanesScalar(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                          const uint8_t* token_of_lane, int16_t* out);

}  // namespace terrace::kernels
