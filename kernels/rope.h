// Rotary position embedding (Su et al., arXiv:2104.09864) undone and done again, with the same
// result on every machine: angles are fractions of a turn in 64-bit integers, and sine and cosine
// come from a polynomial of multiplications and additions that round once each (kernels/turn.h;
// the constants are part of the stored format, docs/formats/chunk.md). Raw pointers; allocates
// nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/turn.h"

namespace terrace::kernels {

// Which two values of a head turn together: value i and i + rotary_dim / 2 (GPT-NeoX, Llama in
// transformers), or 2i and 2i + 1 (GPT-J, llama2.c).
enum class RopePairing : uint8_t { kNone = 0, kHalf = 1, kInterleaved = 2 };

// What [first, first + positions) turn by: of pair i, whose angle grows by frequencies[i] / 2^64
// turns a position, at [position * pairs + i] of both.
void FillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
               float* cosines, float* sines);

// What one token turns by, rotary_dim / 2 each.
struct TokenTurns {
  const float* cosines = nullptr;
  const float* sines = nullptr;
};

// Turns the first rotary_dim values of each of `heads` heads of one token, forward, or back: the
// products with the sine are rounded, then added to those with the cosine, fused.
void Rotate(float* token, size_t heads, size_t head_dim, size_t rotary_dim, RopePairing pairing,
            const TokenTurns& turns, bool back);

}  // namespace terrace::kernels
