// The last step of decoding (docs/formats/chunk.md, "From coefficients to values"): a head's
// coefficients, or the sums of its transform, to values where an engine wants them. Run-time
// dispatch on CPU features; every path writes the same bytes. Raw pointers; allocates nothing. Any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "config/kv_geometry.h"
#include "kernels/rope.h"

namespace terrace::kernels {

// A head, and what its values are made with.
struct HeadFormat {
  Dtype dtype = Dtype::kBf16;  // or kF32, kF16
  size_t dim = 0;              // at most 4096
  size_t rotary_dim = 0;       // 0 for V
  RopePairing pairing = RopePairing::kNone;
  const float* row_scale = nullptr;  // dim
  const float* mean = nullptr;       // dim
  bool stream = false;  // past the caches, where lines are whole: for much more than fits them
};

// A token: its step, what it turns by, and where its values go.
struct TokenPlace {
  float step = 0;
  const float* cosines = nullptr;  // rotary_dim / 2
  const float* sines = nullptr;
  uint8_t* out = nullptr;
};

// With a = in[t * row_stride + j] for token t: x[j] = a * (step * row_scale[j]) + mean[j], where a
// and the product in brackets are rounded and the rest is fused; then turned as Rotate does; then,
// as dtype, to tokens[t].out + out_offset. What was streamed is seen by others after a StreamFence.
void WriteHead(const HeadFormat& head, const int8_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset);
void WriteHead(const HeadFormat& head, const int16_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset);
void WriteHead(const HeadFormat& head, const int32_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset);

void StreamFence();

// The path of machines without AVX-512 BF16: plain loops.
void WriteHeadPlain(const HeadFormat& head, const int8_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset);
void WriteHeadPlain(const HeadFormat& head, const int16_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset);
void WriteHeadPlain(const HeadFormat& head, const int32_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset);

}  // namespace terrace::kernels
