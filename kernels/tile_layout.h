// Between the order of an entropy coder's rounds and tokens (codec/tile_plan.h). Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// rounds[channel][32] of 32 places to tokens: out[token_of_lane[lane]][channel] for the first
// `lanes` lanes. `stride` is between the rounds of two channels, in values.
void TransposeLanes(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                    const uint8_t* token_of_lane, int16_t* out);
// The same, a value at a time.
void TransposeLanesScalar(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                          const uint8_t* token_of_lane, int16_t* out);

}  // namespace terrace::kernels
