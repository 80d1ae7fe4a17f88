#include "kernels/exponent_nibbles.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace terrace::kernels {
namespace {

constexpr uint8_t kEscapeCode = 15;
// Values between those sampled: odd, so that the sample goes through all channels.
constexpr size_t kSampleStride = 7;

std::array<uint8_t, 256> CodeOfExponent(const uint8_t* exponents) {
  std::array<uint8_t, 256> codes;
  codes.fill(kEscapeCode);
  for (size_t i = kNibbleExponents; i-- > 0;) codes[exponents[i]] = static_cast<uint8_t>(i);
  return codes;
}

void PackFrom(const uint16_t* values, size_t count, const uint8_t* code_of, NibbleSink* sink) {
  for (size_t i = 0; i < count; ++i) {
    const uint16_t turned = std::rotl(values[i], 1);
    const auto exponent = static_cast<uint8_t>(turned >> 8);
    const uint8_t code = code_of[exponent];
    *sink->rests++ = static_cast<uint8_t>(turned);
    if (code == kEscapeCode) *sink->escapes++ = exponent;
    if (i % 2 == 0) {
      *sink->codes++ = code;
    } else {
      sink->codes[-1] |= static_cast<uint8_t>(code << 4);
    }
  }
}

}  // namespace

void ChooseExponents(const uint16_t* values, size_t count, uint8_t exponents[kNibbleExponents]) {
  std::array<uint32_t, 256> times{};
  for (size_t i = 0; i < count; i += kSampleStride) ++times[values[i] >> 7 & 0xff];
  std::array<uint8_t, 256> order;
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + kNibbleExponents, order.end(),
                    [&times](uint8_t a, uint8_t b) {
                      return times[a] != times[b] ? times[a] > times[b] : a < b;
                    });
  std::copy_n(order.begin(), kNibbleExponents, exponents);
}

void PackNibblesScalar(const uint16_t* values, size_t count,
                       const uint8_t exponents[kNibbleExponents], NibbleSink* sink) {
  PackFrom(values, count, CodeOfExponent(exponents).data(), sink);
}

bool UnpackNibblesScalar(NibbleSource* source, const uint8_t exponents[kNibbleExponents],
                         size_t count, uint16_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const uint8_t code = source->codes[i / 2] >> (4 * (i % 2)) & 15;
    uint8_t exponent;
    if (code != kEscapeCode) {
      exponent = exponents[code];
    } else {
      if (source->escapes == source->escapes_end) return false;
      exponent = *source->escapes++;
    }
    out[i] = std::rotr(static_cast<uint16_t>(exponent << 8 | source->rests[i]), 1);
  }
  source->codes += (count + 1) / 2;
  source->rests += count;
  return true;
}

#if defined(__x86_64__)

namespace {

enum class Isa { kScalar, kAvx2, kAvx512 };

Isa DetectIsa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return Isa::kScalar;
  const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  return wide ? Isa::kAvx512 : Isa::kAvx2;
}
const Isa kIsa = DetectIsa();

#define TERRACE_AVX512 \
  __attribute__((target("avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")))

// Values to decode alone until `out` is at a multiple of `alignment`: an even number, or none where
// that cannot be.
size_t Before(const uint16_t* out, size_t alignment, size_t count) {
  const size_t past = reinterpret_cast<uintptr_t>(out) % alignment;
  const size_t values = past == 0 ? 0 : (alignment - past) / sizeof *out;
  return values % 2 == 0 ? std::min(values, count & ~size_t{1}) : 0;
}

template <bool kStream>
__attribute__((target("avx2"))) bool UnpackAvx2(NibbleSource* source, const uint8_t* exponents,
                                                size_t blocks, uint16_t* out) {
  alignas(16) uint8_t padded[16] = {};
  std::copy_n(exponents, kNibbleExponents, padded);
  const __m256i lookup =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(padded)));
  for (size_t b = 0; b < blocks; ++b, out += 32) {
    const __m256i pairs = _mm256_cvtepu8_epi16(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(source->codes + 16 * b)));
    const __m256i codes =
        _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(15));
    const __m256i high = _mm256_shuffle_epi8(lookup, codes);
    const __m256i low =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source->rests + 32 * b));
    __m256i halves[2] = {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
    for (__m256i& half : halves) {
      half = _mm256_or_si256(_mm256_srli_epi16(half, 1), _mm256_slli_epi16(half, 15));
    }
    auto* to = reinterpret_cast<__m256i*>(out);
    const __m256i first = _mm256_permute2x128_si256(halves[0], halves[1], 0x20);
    const __m256i second = _mm256_permute2x128_si256(halves[0], halves[1], 0x31);
    if (kStream) {
      _mm256_stream_si256(to, first);
      _mm256_stream_si256(to + 1, second);
    } else {
      _mm256_storeu_si256(to, first);
      _mm256_storeu_si256(to + 1, second);
    }
    auto escaped = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(codes, _mm256_set1_epi8(kEscapeCode))));
    for (; escaped != 0; escaped &= escaped - 1) {
      if (source->escapes == source->escapes_end) return false;
      const int i = std::countr_zero(escaped);
      const auto turned =
          static_cast<uint16_t>(*source->escapes++ << 8 | source->rests[32 * b + i]);
      out[i] = std::rotr(turned, 1);
    }
  }
  return true;
}

template <bool kStream>
TERRACE_AVX512 bool UnpackAvx512(NibbleSource* source, const uint8_t* exponents, size_t blocks,
                                 uint16_t* out) {
  alignas(16) uint8_t padded[16] = {};
  std::copy_n(exponents, kNibbleExponents, padded);
  const __m512i lookup =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(padded)));
  const __m512i order_low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i order_high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (size_t b = 0; b < blocks; ++b, out += 64) {
    const __m512i pairs = _mm512_cvtepu8_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source->codes + 32 * b)));
    const __m512i codes =
        _mm512_and_si512(_mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4)), _mm512_set1_epi8(15));
    __m512i high = _mm512_shuffle_epi8(lookup, codes);
    const __mmask64 escaped = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(kEscapeCode));
    if (escaped != 0) {
      const auto left = static_cast<size_t>(source->escapes_end - source->escapes);
      const auto taken = static_cast<size_t>(_mm_popcnt_u64(escaped));
      if (taken > left) return false;
      const __m512i next = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, taken), source->escapes);
      high = _mm512_mask_expand_epi8(high, escaped, next);
      source->escapes += taken;
    }
    const __m512i low = _mm512_loadu_si512(source->rests + 64 * b);
    __m512i even = _mm512_unpacklo_epi8(low, high), odd = _mm512_unpackhi_epi8(low, high);
    even = _mm512_shrdi_epi16(even, even, 1);
    odd = _mm512_shrdi_epi16(odd, odd, 1);
    const __m512i first = _mm512_permutex2var_epi64(even, order_low, odd);
    const __m512i second = _mm512_permutex2var_epi64(even, order_high, odd);
    auto* to = reinterpret_cast<__m512i*>(out);
    if (kStream) {
      _mm512_stream_si512(to, first);
      _mm512_stream_si512(to + 1, second);
    } else {
      _mm512_storeu_si512(to, first);
      _mm512_storeu_si512(to + 1, second);
    }
  }
  return true;
}

// Whole blocks by `unpack`, the rest one at a time.
template <size_t kBlock, typename Unpack>
bool UnpackBlocks(NibbleSource* source, const uint8_t* exponents, size_t count, bool stream,
                  uint16_t* out, Unpack unpack) {
  if (stream) {
    const size_t before = Before(out, 64, count);
    if (!UnpackNibblesScalar(source, exponents, before, out)) return false;
    out += before;
    count -= before;
    stream = reinterpret_cast<uintptr_t>(out) % 64 == 0;
  }
  const size_t blocks = count / kBlock;
  if (!unpack(stream, blocks, out)) return false;
  source->codes += blocks * kBlock / 2;
  source->rests += blocks * kBlock;
  if (stream) _mm_sfence();
  return UnpackNibblesScalar(source, exponents, count % kBlock, out + blocks * kBlock);
}

TERRACE_AVX512 void PackAvx512(const uint16_t* values, size_t blocks, const uint8_t* code_of,
                               NibbleSink* sink) {
  const __m512i table[4] = {_mm512_loadu_si512(code_of), _mm512_loadu_si512(code_of + 64),
                            _mm512_loadu_si512(code_of + 128), _mm512_loadu_si512(code_of + 192)};
  const __m512i nibbles = _mm512_set1_epi16(0x1001);
  for (size_t b = 0; b < blocks; ++b, values += 64) {
    __m512i first = _mm512_loadu_si512(values), second = _mm512_loadu_si512(values + 32);
    first = _mm512_shldi_epi16(first, first, 1);
    second = _mm512_shldi_epi16(second, second, 1);
    const __m512i rests = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(first)),
                                             _mm512_cvtepi16_epi8(second), 1);
    const __m512i exponents = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16(first, 8))),
        _mm512_cvtepi16_epi8(_mm512_srli_epi16(second, 8)), 1);
    const __m512i codes = _mm512_mask_blend_epi8(
        _mm512_movepi8_mask(exponents), _mm512_permutex2var_epi8(table[0], exponents, table[1]),
        _mm512_permutex2var_epi8(table[2], exponents, table[3]));
    _mm512_storeu_si512(sink->rests, rests);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sink->codes),
                        _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(codes, nibbles)));
    const __mmask64 escaped = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(kEscapeCode));
    if (escaped != 0) {
      const auto taken = static_cast<size_t>(_mm_popcnt_u64(escaped));
      _mm512_mask_storeu_epi8(sink->escapes, _bzhi_u64(~uint64_t{0}, taken),
                              _mm512_maskz_compress_epi8(escaped, exponents));
      sink->escapes += taken;
    }
    sink->rests += 64;
    sink->codes += 32;
  }
}

}  // namespace

void PackNibbles(const uint16_t* values, size_t count, const uint8_t exponents[kNibbleExponents],
                 NibbleSink* sink) {
  const std::array<uint8_t, 256> code_of = CodeOfExponent(exponents);
  const size_t blocks = kIsa == Isa::kAvx512 ? count / 64 : 0;
  if (blocks != 0) PackAvx512(values, blocks, code_of.data(), sink);
  PackFrom(values + 64 * blocks, count - 64 * blocks, code_of.data(), sink);
}

bool UnpackNibblesAvx2(NibbleSource* source, const uint8_t exponents[kNibbleExponents],
                       size_t count, bool stream, uint16_t* out) {
  if (kIsa == Isa::kScalar) return UnpackNibblesScalar(source, exponents, count, out);
  return UnpackBlocks<32>(source, exponents, count, stream, out,
                          [&](bool streamed, size_t blocks, uint16_t* to) {
                            return streamed ? UnpackAvx2<true>(source, exponents, blocks, to)
                                            : UnpackAvx2<false>(source, exponents, blocks, to);
                          });
}

bool UnpackNibbles(NibbleSource* source, const uint8_t exponents[kNibbleExponents], size_t count,
                   bool stream, uint16_t* out) {
  if (kIsa != Isa::kAvx512) return UnpackNibblesAvx2(source, exponents, count, stream, out);
  return UnpackBlocks<64>(source, exponents, count, stream, out,
                          [&](bool streamed, size_t blocks, uint16_t* to) {
                            return streamed ? UnpackAvx512<true>(source, exponents, blocks, to)
                                            : UnpackAvx512<false>(source, exponents, blocks, to);
                          });
}

#else

void PackNibbles(const uint16_t* values, size_t count, const uint8_t exponents[kNibbleExponents],
                 NibbleSink* sink) {
  PackNibblesScalar(values, count, exponents, sink);
}
bool UnpackNibblesAvx2(NibbleSource* source, const uint8_t exponents[kNibbleExponents],
                       size_t count, bool, uint16_t* out) {
  return UnpackNibblesScalar(source, exponents, count, out);
}
bool UnpackNibbles(NibbleSource* source, const uint8_t exponents[kNibbleExponents], size_t count,
                   bool, uint16_t* out) {
  return UnpackNibblesScalar(source, exponents, count, out);
}

#endif

}  // namespace terrace::kernels
