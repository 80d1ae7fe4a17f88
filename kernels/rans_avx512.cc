#include "kernels/rans_lockstep.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <utility>

#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// A register holds the 32 states of a stream. A symbol is looked up by its slot in four registers
// of 64 bytes; what is known of symbols, in registers of 32 words.

namespace terrace::kernels::rans {

namespace {

#define TERRACE_AVX512 \
  __attribute__((target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))

TERRACE_AVX512_INLINE __mmask32 FirstLanes(size_t lanes) {
  return static_cast<__mmask32>((uint64_t{1} << lanes) - 1);
}

// One round of one stream. The odd bytes of `symbols` are noise that the lookups by word ignore.
TERRACE_AVX512_INLINE __m512i DecodeRound(const RansTable& table, __m512i x, __mmask32 active,
                                          __m512i even_bytes, const uint8_t** from, uint8_t* to) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table.slot_to_symbol), x,
                                               _mm512_load_si512(table.slot_to_symbol + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table.slot_to_symbol + 128), x,
                                                _mm512_load_si512(table.slot_to_symbol + 192));
  const __m512i symbols = _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to),
      _mm512_castsi512_si256(_mm512_maskz_permutexvar_epi8(active, even_bytes, symbols)));
  const __m512i gap = _mm512_permutexvar_epi16(symbols, _mm512_load_si512(table.gap));
  const __m512i start = _mm512_permutexvar_epi16(symbols, _mm512_load_si512(table.start));
  // frequency * (x >> 8) + slot - start
  x = _mm512_mask_sub_epi16(x, active, _mm512_sub_epi16(x, start),
                            _mm512_mullo_epi16(gap, _mm512_srli_epi16(x, 8)));
  const __mmask32 refill = _mm512_mask_cmplt_epu16_mask(active, x, _mm512_set1_epi16(256));
  const __m512i bytes =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(*from)));
  *from += _mm_popcnt_u32(refill);
  x = _mm512_mask_slli_epi16(x, refill, x, 8);
  return _mm512_or_si512(x, _mm512_maskz_expand_epi16(refill, bytes));
}

TERRACE_AVX512_INLINE __m512i EvenBytes() {
  const __m512i words = _mm512_cvtepu8_epi16(
      _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                       22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
  // Bytes 0, 2, .. 62 of a register, in its lower half.
  return _mm512_zextsi256_si512(_mm512_cvtepi16_epi8(_mm512_slli_epi16(words, 1)));
}

// Over the streams by fold expressions, which are unrolled in every build that optimises.
template <size_t... k>
TERRACE_AVX512_INLINE void DecodeEach(const Lockstep& common, Lane* lanes, size_t rounds,
                                      std::index_sequence<k...>) {
  const RansTable* const tables = common.tables;
  const __mmask32 tail = FirstLanes(common.tail_lanes);
  const size_t rounds_per_channel = common.rounds_per_channel;
  size_t to_tail = common.to_tail;
  const __m512i even_bytes = EvenBytes();
  __m512i x[] = {_mm512_load_si512(lanes[k].states)...};
  const uint8_t* at[] = {lanes[k].reader.at...};
  const uint8_t* const schedule[] = {lanes[k].schedule...};
  uint8_t* const symbols[] = {lanes[k].symbols...};
  for (size_t round = 0; round < rounds; ++round) {
    const __mmask32 active = to_tail == 0 ? tail : FirstLanes(kRansLanes);
    to_tail = to_tail == 0 ? rounds_per_channel - 1 : to_tail - 1;
    ((x[k] = DecodeRound(tables[schedule[k][round]], x[k], active, even_bytes, &at[k],
                         symbols[k] + round * kRansLanes)),
     ...);
  }
  (_mm512_store_si512(lanes[k].states, x[k]), ...);
  ((lanes[k].reader.at = at[k]), ...);
  ((lanes[k].schedule += rounds), ...);
  ((lanes[k].symbols += rounds * kRansLanes), ...);
}

template <size_t kStreams>
TERRACE_AVX512 void DecodeSome(const Lockstep& common, Lane* lanes, size_t rounds) {
  DecodeEach(common, lanes, rounds, std::make_index_sequence<kStreams>());
}

// The encoder keeps its lanes in descending order, as it writes their bytes.
struct Lanes {
  __m512i x;
  __m512i frequency_seen;  // the least
  __m256i symbol_seen;     // the greatest
};

struct Shuffles {
  __m512i even_bytes;
  __m512i descending;  // byte 31 - i to word i, and noise
};

TERRACE_AVX512_INLINE void EncodeRound(const RansTable& table, const uint8_t* from,
                                       __mmask32 active, __mmask32 descending_active,
                                       const Shuffles& shuffles, Lanes* lanes, uint8_t** to) {
  const __m256i given = _mm256_maskz_loadu_epi8(active, reinterpret_cast<const __m256i*>(from));
  lanes->symbol_seen = _mm256_max_epu8(lanes->symbol_seen, given);
  const __m512i symbols =
      _mm512_permutexvar_epi8(shuffles.descending, _mm512_castsi256_si512(given));
  const __m512i gap = _mm512_permutexvar_epi16(symbols, _mm512_load_si512(table.gap));
  const __m512i start = _mm512_permutexvar_epi16(symbols, _mm512_load_si512(table.start));
  const __m512i reciprocal = _mm512_permutexvar_epi16(symbols, _mm512_load_si512(table.reciprocal));
  const __m512i frequency = _mm512_sub_epi16(_mm512_set1_epi16(kRansTotal), gap);
  lanes->frequency_seen = _mm512_mask_min_epu16(lanes->frequency_seen, descending_active,
                                                lanes->frequency_seen, frequency);

  const __m512i high = _mm512_srli_epi16(lanes->x, 8);
  const __mmask32 emit = _mm512_mask_cmpge_epu16_mask(descending_active, high, frequency);
  const __m256i bytes =
      _mm512_castsi512_si256(_mm512_permutexvar_epi8(shuffles.even_bytes, lanes->x));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(*to), _mm256_maskz_compress_epi8(emit, bytes));
  *to += _mm_popcnt_u32(emit);
  const __m512i x = _mm512_mask_mov_epi16(lanes->x, emit, high);

  // The quotient, or one less.
  const __m512i quotient = _mm512_mulhi_epu16(x, reciprocal);
  const __m512i remainder = _mm512_sub_epi16(x, _mm512_mullo_epi16(quotient, frequency));
  const __mmask32 less = _mm512_cmpge_epu16_mask(remainder, frequency);
  __m512i next =
      _mm512_add_epi16(_mm512_add_epi16(_mm512_slli_epi16(quotient, 8), start), remainder);
  next = _mm512_mask_add_epi16(next, less, next, gap);
  lanes->x = _mm512_mask_mov_epi16(lanes->x, descending_active, next);
}

TERRACE_AVX512_INLINE bool Codable(const Lanes& lanes) {
  const __m256i strange = _mm256_set1_epi8(static_cast<char>(~(kRansSymbols - 1)));
  return _mm512_testn_epi16_mask(lanes.frequency_seen, lanes.frequency_seen) == 0 &&
         _mm256_testz_si256(lanes.symbol_seen, strange) != 0;
}

template <size_t... k>
TERRACE_AVX512_INLINE void EncodeEach(Encoding<sizeof...(k)>* encoding, std::index_sequence<k...>) {
  const RansTable* const tables = encoding->bank->tables;
  const RansShape shape = encoding->shape;
  const __mmask32 tail = FirstLanes(shape.tail_lanes);
  const __mmask32 descending_tail = tail << (kRansLanes - shape.tail_lanes);
  const __m512i words = _mm512_cvtepu8_epi16(
      _mm256_setr_epi8(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13,
                       12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  const Shuffles shuffles = {EvenBytes(), words};
  const Lanes fresh = {_mm512_set1_epi16(kFirstState), _mm512_set1_epi16(kRansTotal),
                       _mm256_setzero_si256()};
  Lanes lanes[] = {(static_cast<void>(k), fresh)...};
  uint8_t* at[] = {encoding->at[k]...};
  size_t from_tail = (shape.rounds_per_channel - shape.rounds % shape.rounds_per_channel) %
                     shape.rounds_per_channel;
  for (size_t round = shape.rounds; round-- > 0;) {
    const __mmask32 active = from_tail == 0 ? tail : FirstLanes(kRansLanes);
    const __mmask32 descending = from_tail == 0 ? descending_tail : FirstLanes(kRansLanes);
    from_tail = from_tail + 1 == shape.rounds_per_channel ? 0 : from_tail + 1;
    (EncodeRound(tables[encoding->schedule[k][round]], encoding->symbols[k] + round * kRansLanes,
                 active, descending, shuffles, &lanes[k], &at[k]),
     ...);
  }
  (_mm512_store_si512(encoding->states[k], _mm512_permutexvar_epi16(words, lanes[k].x)), ...);
  ((encoding->at[k] = at[k]), ...);
  ((encoding->ok[k] = Codable(lanes[k])), ...);
}

template <size_t kStreams>
TERRACE_AVX512 void EncodeRounds(Encoding<kStreams>* encoding) {
  EncodeEach(encoding, std::make_index_sequence<kStreams>());
}

}  // namespace

bool EncodeAvx512(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  return EncodeAll<EncodeGroup<4, EncodeRounds<4>, ReverseAvx2>,
                   EncodeGroup<2, EncodeRounds<2>, ReverseAvx2>,
                   EncodeGroup<1, EncodeRounds<1>, ReverseAvx2>>(bank, shape, sources);
}

void DecodeRoundsAvx512(const Lockstep& common, Lane* lanes, size_t count, size_t rounds) {
  for (; count >= 8; count -= 8, lanes += 8) DecodeSome<8>(common, lanes, rounds);
  for (; count >= 4; count -= 4, lanes += 4) DecodeSome<4>(common, lanes, rounds);
  for (; count >= 2; count -= 2, lanes += 2) DecodeSome<2>(common, lanes, rounds);
  if (count != 0) DecodeSome<1>(common, lanes, rounds);
}

}  // namespace terrace::kernels::rans

#endif  // __x86_64__
