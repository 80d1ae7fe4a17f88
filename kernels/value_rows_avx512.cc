#include "kernels/value_rows_simd.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// 16 channels a register, two registers a block. A block keeps its scales and means in registers
// while it goes through the tokens.

namespace terrace::kernels::value_rows {

namespace {

#define TERRACE_AVX512 \
  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,bmi2")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))

constexpr size_t kWidth = 16, kBlock = 2 * kWidth;

// 16 floats of which the mask says which are meant.
struct Vector {
  __m512 values;
  __mmask16 mask;
};

TERRACE_AVX512_INLINE __mmask16 FirstOf(size_t count) {
  return static_cast<__mmask16>((1u << std::min(count, kWidth)) - 1);
}

TERRACE_AVX512_INLINE __m512 Load(__mmask16 mask, const int8_t* in) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, in)));
}
TERRACE_AVX512_INLINE __m512 Load(__mmask16 mask, const int16_t* in) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, in)));
}
TERRACE_AVX512_INLINE __m512 Load(__mmask16 mask, const int32_t* in) {
  return _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, in));
}

TERRACE_AVX512_INLINE void StoreLine(uint8_t* out, __m512i line, bool stream) {
  if (stream) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), line);
  } else {
    _mm512_storeu_si512(out, line);
  }
}

// A block of 32 values. kWhole: all of them; only then may it be streamed.
template <Dtype dtype, bool kWhole>
TERRACE_AVX512_INLINE void Store(uint8_t* out, __mmask32 mask, __m512 a, __m512 b, bool stream) {
  if constexpr (dtype == Dtype::kF32) {
    if constexpr (kWhole) {
      StoreLine(out, _mm512_castps_si512(a), stream);
      StoreLine(out + 64, _mm512_castps_si512(b), stream);
    } else {
      _mm512_mask_storeu_ps(out, static_cast<__mmask16>(mask), a);
      _mm512_mask_storeu_ps(out + 64, static_cast<__mmask16>(mask >> 16), b);
    }
  } else {
    __m512i halves;
    if constexpr (dtype == Dtype::kBf16) {
      halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    } else {
      halves =
          _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)),
                             _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT), 1);
    }
    if constexpr (kWhole) {
      StoreLine(out, halves, stream);
    } else {
      _mm512_mask_storeu_epi16(out, mask, halves);
    }
  }
}

// What makes values of a block's coefficients.
struct Block {
  __mmask16 mask[2];
  __m512 row_scale[2], mean[2];
};

TERRACE_AVX512_INLINE Block BlockAt(const HeadFormat& head, size_t at, size_t count) {
  Block block;
#pragma GCC unroll 2
  for (size_t i = 0; i < 2; ++i) {
    block.mask[i] = FirstOf(count - std::min(count, i * kWidth));
    block.row_scale[i] = _mm512_maskz_loadu_ps(block.mask[i], head.row_scale + at + i * kWidth);
    block.mean[i] = _mm512_maskz_loadu_ps(block.mask[i], head.mean + at + i * kWidth);
  }
  return block;
}

template <bool kWhole, typename T>
TERRACE_AVX512_INLINE __m512 ValuesOf(const Block& block, size_t i, const T* in, __m512 step) {
  return _mm512_fmadd_ps(Load(kWhole ? 0xffff : block.mask[i], in + i * kWidth),
                         _mm512_mul_ps(step, block.row_scale[i]), block.mean[i]);
}

// What all of a call works on.
template <typename T>
struct Rows {
  const HeadFormat& head;
  const T* in;
  size_t row_stride;
  std::span<const TokenPlace> tokens;
  size_t out_offset;
};

template <Dtype dtype>
constexpr size_t kValueBytes = dtype == Dtype::kF32 ? 4 : 2;

// `count` channels from `at`, as they are.
template <Dtype dtype, bool kWhole, typename T>
TERRACE_AVX512_INLINE void WriteStill(const Rows<T>& rows, size_t at, size_t count, bool stream) {
  const Block block = BlockAt(rows.head, at, count);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  const T* in = rows.in + at;
  const size_t row_stride = rows.row_stride, offset = rows.out_offset + at * kValueBytes<dtype>;
  for (const TokenPlace *token = rows.tokens.data(), *end = token + rows.tokens.size();
       token != end; ++token, in += row_stride) {
    const __m512 step = _mm512_set1_ps(token->step);
    Store<dtype, kWhole>(token->out + offset, mask, ValuesOf<kWhole>(block, 0, in, step),
                         ValuesOf<kWhole>(block, 1, in, step), stream);
  }
}

// `count` pairs from `at`, of channels i and i + rotary_dim / 2.
template <Dtype dtype, bool kWhole, typename T>
TERRACE_AVX512_INLINE void WriteHalf(const Rows<T>& rows, size_t at, size_t count, bool stream) {
  const size_t pairs = rows.head.rotary_dim / 2;
  const Block first = BlockAt(rows.head, at, count), second = BlockAt(rows.head, at + pairs, count);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  const T* in = rows.in + at;
  const size_t row_stride = rows.row_stride, offset = rows.out_offset + at * kValueBytes<dtype>;
  for (const TokenPlace *token = rows.tokens.data(), *end = token + rows.tokens.size();
       token != end; ++token, in += row_stride) {
    const __m512 step = _mm512_set1_ps(token->step);
    __m512 x[2], y[2];
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; ++i) {
      const __m512 a = ValuesOf<kWhole>(first, i, in, step);
      const __m512 b = ValuesOf<kWhole>(second, i, in + pairs, step);
      const __mmask16 of = kWhole ? 0xffff : first.mask[i];
      const __m512 cosine = _mm512_maskz_loadu_ps(of, token->cosines + at + i * kWidth);
      const __m512 sine = _mm512_maskz_loadu_ps(of, token->sines + at + i * kWidth);
      x[i] = _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine));
      y[i] = _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine));
    }
    uint8_t* const out = token->out + offset;
    Store<dtype, kWhole>(out, mask, x[0], x[1], stream);
    Store<dtype, kWhole>(out + pairs * kValueBytes<dtype>, mask, y[0], y[1], stream);
  }
}

// `count` channels from `at`, of which 2 i and 2 i + 1 turn together.
template <Dtype dtype, bool kWhole, typename T>
TERRACE_AVX512_INLINE void WriteInterleaved(const Rows<T>& rows, size_t at, size_t count,
                                            bool stream) {
  const Block block = BlockAt(rows.head, at, count);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const T* in = rows.in + at;
  const size_t row_stride = rows.row_stride, offset = rows.out_offset + at * kValueBytes<dtype>;
  for (const TokenPlace *token = rows.tokens.data(), *end = token + rows.tokens.size();
       token != end; ++token, in += row_stride) {
    const __m512 step = _mm512_set1_ps(token->step);
    __m512 turned[2];
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; ++i) {
      const size_t pair = (at + i * kWidth) / 2;
      const auto of = static_cast<__mmask8>(kWhole ? 0xff : _pext_u32(block.mask[i], 0x5555));
      const __m512 cosine = _mm512_permutexvar_ps(
          twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(of, token->cosines + pair)));
      const __m512 sine = _mm512_permutexvar_ps(
          twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(of, token->sines + pair)));
      const __m512 x = ValuesOf<kWhole>(block, i, in, step);
      turned[i] = _mm512_fmaddsub_ps(x, cosine, _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), sine));
    }
    Store<dtype, kWhole>(token->out + offset, mask, turned[0], turned[1], stream);
  }
}

// Whether it is wanted, and each block is whole lines.
template <Dtype dtype, typename T>
bool CanStream(const Rows<T>& rows) {
  if (!rows.head.stream) return false;
  uintptr_t low_bits = rows.out_offset | (rows.head.rotary_dim / 2 * kValueBytes<dtype>);
  for (const TokenPlace& token : rows.tokens) low_bits |= reinterpret_cast<uintptr_t>(token.out);
  return low_bits % 64 == 0;
}

template <Dtype dtype, typename T>
TERRACE_AVX512 void WriteAs(const Rows<T>& rows) {
  const size_t dim = rows.head.dim, rotary_dim = rows.head.rotary_dim;
  const bool stream = CanStream<dtype>(rows);
  if (rows.head.pairing == RopePairing::kHalf) {
    for (size_t at = 0; at < rotary_dim / 2; at += kBlock) {
      if (at + kBlock <= rotary_dim / 2) {
        WriteHalf<dtype, true>(rows, at, kBlock, stream);
      } else {
        WriteHalf<dtype, false>(rows, at, rotary_dim / 2 - at, false);
      }
    }
  }
  if (rows.head.pairing == RopePairing::kInterleaved) {
    for (size_t at = 0; at < rotary_dim; at += kBlock) {
      if (at + kBlock <= rotary_dim) {
        WriteInterleaved<dtype, true>(rows, at, kBlock, stream);
      } else {
        WriteInterleaved<dtype, false>(rows, at, rotary_dim - at, false);
      }
    }
  }
  for (size_t at = rotary_dim; at < dim; at += kBlock) {
    if (at + kBlock <= dim) {
      WriteStill<dtype, true>(rows, at, kBlock, stream);
    } else {
      WriteStill<dtype, false>(rows, at, dim - at, false);
    }
  }
}

template <typename T>
void WriteRows(const Rows<T>& rows) {
  switch (rows.head.dtype) {
    case Dtype::kF32:
      return WriteAs<Dtype::kF32>(rows);
    case Dtype::kF16:
      return WriteAs<Dtype::kF16>(rows);
    default:
      return WriteAs<Dtype::kBf16>(rows);
  }
}

}  // namespace

void WriteAvx512(const HeadFormat& head, const int8_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset) {
  WriteRows(Rows<int8_t>{head, in, row_stride, tokens, out_offset});
}
void WriteAvx512(const HeadFormat& head, const int16_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset) {
  WriteRows(Rows<int16_t>{head, in, row_stride, tokens, out_offset});
}
void WriteAvx512(const HeadFormat& head, const int32_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset) {
  WriteRows(Rows<int32_t>{head, in, row_stride, tokens, out_offset});
}

}  // namespace terrace::kernels::value_rows

#endif  // __x86_64__
