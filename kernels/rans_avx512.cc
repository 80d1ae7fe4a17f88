#include "kernels/rans_avx512.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define TERRACE_RANS \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi2,popcnt")))
#endif

namespace terrace::kernels {

#if defined(__x86_64__)
namespace {

constexpr uint32_t kLowest = 256;

uint32_t LaneMask(uint32_t lanes) { return lanes == kRansLanes ? ~0u : (1u << lanes) - 1; }

// Four streams keep their dependent steps out of each other's way.
struct Decoding {
  __m512i state;
  const uint8_t* next;
  const uint8_t* end;
  const uint8_t* schedule;
  uint8_t* symbols;
  bool ok;
};

TERRACE_RANS void Start(const RansShape& shape, const RansStream& stream, Decoding* decoding) {
  const uint32_t bytes = 2 * shape.States();
  *decoding = {_mm512_set1_epi16(kLowest),
               stream.data,
               stream.data + stream.size,
               stream.schedule,
               stream.symbols,
               stream.size >= bytes};
  if (!decoding->ok) {
    decoding->next = decoding->end;
    return;
  }
  decoding->state = _mm512_mask_loadu_epi16(decoding->state, LaneMask(shape.States()), stream.data);
  decoding->next += bytes;
}

// kWhole: 32 bytes may be read, whatever is needed of them.
template <bool kWhole>
TERRACE_RANS inline void Round(const RansTables& tables, uint32_t round, uint32_t lanes,
                               Decoding* d) {
  const uint32_t id = d->schedule[round];
  const uint8_t* map = tables.symbol_of_slot[id];
  const __m512i slot = _mm512_and_si512(d->state, _mm512_set1_epi16(255));
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_load_si512(map), slot, _mm512_load_si512(map + 64));
  const __m512i high =
      _mm512_permutex2var_epi8(_mm512_load_si512(map + 128), slot, _mm512_load_si512(map + 192));
  const __m512i symbol = _mm512_and_si512(
      _mm512_mask_blend_epi8(_mm512_movepi8_mask(slot), low, high), _mm512_set1_epi16(255));
  const __m512i frequency =
      _mm512_permutexvar_epi16(symbol, _mm512_load_si512(tables.frequency[id]));
  const __m512i start = _mm512_permutexvar_epi16(symbol, _mm512_load_si512(tables.start[id]));
  const __m512i x = _mm512_add_epi16(_mm512_mullo_epi16(frequency, _mm512_srli_epi16(d->state, 8)),
                                     _mm512_sub_epi16(slot, start));
  uint32_t refill = _mm512_mask_cmplt_epu16_mask(lanes, x, _mm512_set1_epi16(kLowest));
  const auto wanted = static_cast<uint32_t>(__builtin_popcount(refill));
  __m256i bytes;
  if constexpr (kWhole) {
    bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(d->next));
  } else {
    const auto left = static_cast<uint32_t>(std::min<ptrdiff_t>(d->end - d->next, 32));
    bytes = _mm256_maskz_loadu_epi8(LaneMask(left), d->next);
    if (wanted > left) {
      d->ok = false;
      d->next = d->end;
      refill = 0;
    }
  }
  const __m512i fresh = _mm512_maskz_expand_epi16(refill, _mm512_cvtepu8_epi16(bytes));
  const __m512i filled = _mm512_or_si512(_mm512_mask_slli_epi16(x, refill, x, 8), fresh);
  d->state = _mm512_mask_mov_epi16(d->state, lanes, filled);
  if (kWhole || d->ok) d->next += wanted;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(d->symbols + kRansLanes * round),
                      _mm512_maskz_cvtepi16_epi8(lanes, symbol));
}

template <size_t kStreams>
TERRACE_RANS void DecodeTogether(const RansTables& tables, const RansShape& shape,
                                 RansStream* streams) {
  Decoding d[kStreams];
  for (size_t i = 0; i < kStreams; ++i) Start(shape, streams[i], &d[i]);
  const uint32_t tail = LaneMask(shape.tail_lanes);
  uint32_t in_group = 0;
  for (uint32_t round = 0; round < shape.rounds; ++round) {
    const bool last = ++in_group == shape.group;
    const uint32_t lanes = last ? tail : ~0u;
    if (last) in_group = 0;
    bool whole = true;
    for (size_t i = 0; i < kStreams; ++i) whole &= d[i].end - d[i].next >= 32;
    if (whole) {
#pragma GCC unroll 4
      for (size_t i = 0; i < kStreams; ++i) Round<true>(tables, round, lanes, &d[i]);
    } else {
      for (size_t i = 0; i < kStreams; ++i) Round<false>(tables, round, lanes, &d[i]);
    }
  }
  for (size_t i = 0; i < kStreams; ++i) {
    streams[i].ok = d[i].ok && d[i].next == d[i].end &&
                    _mm512_cmpneq_epi16_mask(d[i].state, _mm512_set1_epi16(kLowest)) == 0;
  }
}

}  // namespace

bool RansAvx512Supported() {
  static const bool supported =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");
  return supported;
}

void RansDecodeAvx512(const RansTables& tables, const RansShape& shape, RansStream* streams,
                      size_t count) {
  for (; count >= 4; count -= 4, streams += 4) DecodeTogether<4>(tables, shape, streams);
  for (; count >= 2; count -= 2, streams += 2) DecodeTogether<2>(tables, shape, streams);
  if (count == 1) DecodeTogether<1>(tables, shape, streams);
}

TERRACE_RANS size_t RansEncodeAvx512(const RansTables& tables, const RansShape& shape,
                                     const uint8_t* schedule, const uint8_t* symbols,
                                     uint8_t* out) {
  const __m256i iota = _mm256_set_epi8(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
                                       16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i state = _mm512_set1_epi16(kLowest);
  uint8_t* const end = out + RansBound(shape);
  uint8_t* next = end;
  uint32_t impossible = 0;
  for (uint32_t round = shape.rounds; round-- > 0;) {
    const uint32_t id = schedule[round], lanes = LaneMask(shape.Lanes(round));
    const __m512i symbol = _mm512_cvtepu8_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols + kRansLanes * round)));
    const __m512i frequency =
        _mm512_permutexvar_epi16(symbol, _mm512_load_si512(tables.frequency[id]));
    const __m512i start = _mm512_permutexvar_epi16(symbol, _mm512_load_si512(tables.start[id]));
    const __m512i reciprocal =
        _mm512_permutexvar_epi16(symbol, _mm512_load_si512(tables.reciprocal[id]));
    impossible |= _mm512_mask_cmpeq_epi16_mask(lanes, frequency, _mm512_setzero_si512());
    const __m512i high = _mm512_srli_epi16(state, 8);
    const uint32_t emit = _mm512_mask_cmpge_epu16_mask(lanes, high, frequency);
    const auto count = static_cast<uint8_t>(__builtin_popcount(emit));
    // The bytes go to the top of 32, and those below are written over by the next round.
    const __m256i packed = _mm256_maskz_compress_epi8(emit, _mm512_maskz_cvtepi16_epi8(~0u, state));
    const __m256i topped = _mm256_maskz_permutexvar_epi8(
        ~0u, _mm256_add_epi8(iota, _mm256_set1_epi8(static_cast<char>(count))), packed);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(next - 32), topped);
    next -= count;
    // x / frequency: the estimate is right or one less, for x < 256 * frequency.
    const __m512i x = _mm512_mask_mov_epi16(state, emit, high);
    const __m512i estimate = _mm512_mulhi_epu16(x, reciprocal);
    const __m512i rest = _mm512_sub_epi16(x, _mm512_mullo_epi16(estimate, frequency));
    const __mmask32 more = _mm512_cmpge_epu16_mask(rest, frequency);
    const __m512i quotient = _mm512_mask_add_epi16(estimate, more, estimate, _mm512_set1_epi16(1));
    const __m512i remainder = _mm512_mask_sub_epi16(rest, more, rest, frequency);
    const __m512i coded =
        _mm512_add_epi16(_mm512_slli_epi16(quotient, 8), _mm512_add_epi16(remainder, start));
    state = _mm512_mask_mov_epi16(state, lanes, coded);
  }
  if (impossible != 0) return 0;
  const uint32_t states = shape.States();
  next -= 2 * states;
  _mm512_mask_storeu_epi16(next, LaneMask(states), state);
  std::memmove(out, next, end - next);
  return end - next;
}
#else
bool RansAvx512Supported() { return false; }
size_t RansEncodeAvx512(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                        const uint8_t* symbols, uint8_t* out) {
  return RansEncodeScalar(tables, shape, schedule, symbols, out);
}
void RansDecodeAvx512(const RansTables& tables, const RansShape& shape, RansStream* streams,
                      size_t count) {
  RansDecodeScalar(tables, shape, streams, count);
}
#endif

}  // namespace terrace::kernels
