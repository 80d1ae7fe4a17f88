#include "kernels/rans_lockstep.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

// Two registers of 16 words hold the 32 states of a stream: lanes 0-7 and 16-23, and lanes 8-15
// and 24-31, so that packing them to bytes gives the lanes in order, and unpacking inverts that.
// Lookups shuffle bytes: 16 entries at a time.

namespace terrace::kernels::rans {

namespace {

#define TERRACE_AVX2 __attribute__((target("avx2,popcnt")))
#define TERRACE_AVX2_INLINE TERRACE_AVX2 inline __attribute__((always_inline))

struct Words {
  __m256i a;  // lanes 0-7 and 16-23
  __m256i b;  // lanes 8-15 and 24-31
};

using ShuffleTable = std::array<uint64_t, 256>;

// By the mask of 8 lanes: byte i is the place of lane i among those of the mask, or 0x80.
constexpr ShuffleTable MakeExpand() {
  ShuffleTable table{};
  for (uint64_t mask = 0; mask < 256; ++mask) {
    uint64_t place = 0;
    for (int lane = 0; lane < 8; ++lane) {
      table[mask] |= ((mask >> lane & 1) != 0 ? place++ : 0x80) << (8 * lane);
    }
  }
  return table;
}
// By the mask of 8 lanes: the lanes of the mask in descending order.
constexpr ShuffleTable MakeCompress() {
  ShuffleTable table{};
  for (uint64_t mask = 0; mask < 256; ++mask) {
    int place = 0;
    for (uint64_t lane = 8; lane-- > 0;) {
      if ((mask >> lane & 1) != 0) table[mask] |= lane << (8 * place++);
    }
  }
  return table;
}
constexpr ShuffleTable kExpand = MakeExpand();
constexpr ShuffleTable kCompress = MakeCompress();

TERRACE_AVX2_INLINE __m256i Broadcast16(const uint8_t* entries) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
}

// Eight bytes from each of four places.
TERRACE_AVX2_INLINE __m256i Load4(const void* p0, const void* p1, const void* p2, const void* p3) {
  const __m128 low =
      _mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64(static_cast<const __m128i*>(p0))),
                   static_cast<const __m64*>(p1));
  const __m128 high =
      _mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64(static_cast<const __m128i*>(p2))),
                   static_cast<const __m64*>(p3));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_castps_si128(low)),
                                 _mm_castps_si128(high), 1);
}

// The shuffle of four times eight lanes that `table` has for their masks.
TERRACE_AVX2_INLINE __m256i LaneShuffle(const ShuffleTable& table, uint32_t mask) {
  const __m256i upper = _mm256_setr_epi64x(0, 0x0808080808080808, 0, 0x0808080808080808);
  return _mm256_or_si256(upper, Load4(&table[mask & 0xff], &table[mask >> 8 & 0xff],
                                      &table[mask >> 16 & 0xff], &table[mask >> 24]));
}

TERRACE_AVX2_INLINE __m256i PackLowBytes(const Words& x) {
  const __m256i low = _mm256_set1_epi16(0xff);
  return _mm256_packus_epi16(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
}

TERRACE_AVX2_INLINE Words LoadStates(const uint16_t* states) {
  const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(states));
  const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(states + 16));
  return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}

TERRACE_AVX2_INLINE void StoreStates(const Words& x, uint16_t* states) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(states), _mm256_permute2x128_si256(x.a, x.b, 0x20));
  _mm256_store_si256(reinterpret_cast<__m256i*>(states + 16),
                     _mm256_permute2x128_si256(x.a, x.b, 0x31));
}

// The active lanes of a round that has fewer than 32.
struct Active {
  __m256i bytes;
  Words words;
};

TERRACE_AVX2 Active FirstLanes(size_t lanes) {
  alignas(32) uint8_t bytes[kRansLanes] = {};
  std::memset(bytes, 0xff, lanes);
  const __m256i active = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
  return {active, {_mm256_unpacklo_epi8(active, active), _mm256_unpackhi_epi8(active, active)}};
}

struct Found {
  __m256i symbol;
  __m256i start;
  __m256i gap;
};

// From a node of one level to its child; by their places in the level.
TERRACE_AVX2_INLINE __m256i Descend(const uint8_t* level, __m256i key, __m256i node) {
  const __m256i split = _mm256_shuffle_epi8(Broadcast16(level), node);
  return _mm256_sub_epi8(_mm256_add_epi8(node, node), _mm256_cmpgt_epi8(key, split));
}

// Each slot's symbol: down the tree, one shuffle and one comparison a level.
TERRACE_AVX2_INLINE Found Find(const RansTable& table, __m256i slot) {
  const __m256i key = _mm256_xor_si256(slot, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i root = _mm256_set1_epi8(static_cast<char>(table.tree[1]));
  __m256i node = _mm256_abs_epi8(_mm256_cmpgt_epi8(key, root));
  node = Descend(table.tree + 2, key, node);
  node = Descend(table.tree + 4, key, node);
  node = Descend(table.tree + 8, key, node);
  const __m256i split = _mm256_shuffle_epi8(Broadcast16(table.tree + 16), node);
  const __m256i odd = _mm256_cmpgt_epi8(key, split);
  const __m256i symbol = _mm256_sub_epi8(_mm256_add_epi8(node, node), odd);
  return {_mm256_max_epu8(symbol, _mm256_set1_epi8(static_cast<char>(table.first_symbol))),
          _mm256_blendv_epi8(_mm256_shuffle_epi8(Broadcast16(table.leaf_start[0]), node),
                             _mm256_shuffle_epi8(Broadcast16(table.leaf_start[1]), node), odd),
          _mm256_blendv_epi8(_mm256_shuffle_epi8(Broadcast16(table.leaf_gap[0]), node),
                             _mm256_shuffle_epi8(Broadcast16(table.leaf_gap[1]), node), odd)};
}

// frequency * (x >> 8) + slot - start
TERRACE_AVX2_INLINE __m256i Step(__m256i x, __m256i gap, __m256i start) {
  return _mm256_sub_epi16(_mm256_sub_epi16(x, start),
                          _mm256_mullo_epi16(gap, _mm256_srli_epi16(x, 8)));
}

TERRACE_AVX2_INLINE __m256i Refill(__m256i x, __m256i below, __m256i bytes) {
  return _mm256_or_si256(_mm256_blendv_epi8(x, _mm256_slli_epi16(x, 8), below), bytes);
}

template <bool kFull>
TERRACE_AVX2_INLINE void DecodeRound(const RansTable& table, const Active& active, Words* states,
                                     const uint8_t** from, uint8_t* to) {
  const __m256i zero = _mm256_setzero_si256();
  Found found = Find(table, PackLowBytes(*states));
  if constexpr (!kFull) found.symbol = _mm256_and_si256(found.symbol, active.bytes);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), found.symbol);
  Words x = {Step(states->a, _mm256_unpacklo_epi8(found.gap, zero),
                  _mm256_unpacklo_epi8(found.start, zero)),
             Step(states->b, _mm256_unpackhi_epi8(found.gap, zero),
                  _mm256_unpackhi_epi8(found.start, zero))};
  if constexpr (!kFull) {
    x.a = _mm256_blendv_epi8(states->a, x.a, active.words.a);
    x.b = _mm256_blendv_epi8(states->b, x.b, active.words.b);
  }
  // Inactive lanes are never below 256.
  const Words below = {_mm256_cmpeq_epi16(_mm256_srli_epi16(x.a, 8), zero),
                       _mm256_cmpeq_epi16(_mm256_srli_epi16(x.b, 8), zero)};
  const uint32_t mask = _mm256_movemask_epi8(_mm256_packs_epi16(below.a, below.b));
  const uint8_t* at = *from;
  const __m256i read = Load4(at, at + std::popcount(mask & 0xff), at + std::popcount(mask & 0xffff),
                             at + std::popcount(mask & 0xffffff));
  *from = at + std::popcount(mask);
  const __m256i bytes = _mm256_shuffle_epi8(read, LaneShuffle(kExpand, mask));
  states->a = Refill(x.a, below.a, _mm256_unpacklo_epi8(bytes, zero));
  states->b = Refill(x.b, below.b, _mm256_unpackhi_epi8(bytes, zero));
}

// Over the streams by fold expressions, which are unrolled in every build that optimises.
template <size_t... k>
TERRACE_AVX2_INLINE void DecodeEach(const Lockstep& common, Lane* lanes, size_t rounds,
                                    std::index_sequence<k...>) {
  const RansTable* const tables = common.tables;
  const size_t rounds_per_channel = common.rounds_per_channel;
  const bool no_tail = common.tail_lanes == kRansLanes;
  size_t to_tail = common.to_tail;
  const Active active = FirstLanes(common.tail_lanes);
  Words x[] = {LoadStates(lanes[k].states)...};
  const uint8_t* at[] = {lanes[k].reader.at...};
  for (size_t round = 0; round < rounds; ++round) {
    if (no_tail || to_tail != 0) {
      (DecodeRound<true>(tables[lanes[k].schedule[round]], active, &x[k], &at[k],
                         lanes[k].symbols + round * kRansLanes),
       ...);
    } else {
      (DecodeRound<false>(tables[lanes[k].schedule[round]], active, &x[k], &at[k],
                          lanes[k].symbols + round * kRansLanes),
       ...);
    }
    to_tail = to_tail == 0 ? rounds_per_channel - 1 : to_tail - 1;
  }
  (StoreStates(x[k], lanes[k].states), ...);
  ((lanes[k].reader.at = at[k]), ...);
  ((lanes[k].schedule += rounds), ...);
  ((lanes[k].symbols += rounds * kRansLanes), ...);
}

template <size_t kStreams>
TERRACE_AVX2 void DecodeSome(const Lockstep& common, Lane* lanes, size_t rounds) {
  DecodeEach(common, lanes, rounds, std::make_index_sequence<kStreams>());
}

// 32 entries by symbol: `low` selects below 16, `high` from there on; the other gives 0.
TERRACE_AVX2_INLINE __m256i LookUp(const uint8_t* entries, __m256i low, __m256i high) {
  return _mm256_or_si256(_mm256_shuffle_epi8(Broadcast16(entries), low),
                         _mm256_shuffle_epi8(Broadcast16(entries + 16), high));
}

struct Lanes {
  Words x;
  __m256i reciprocal_seen;  // the least high byte: 0 only of frequency 0
  __m256i symbol_seen;      // the greatest
};

TERRACE_AVX2_INLINE __m256i Divide(__m256i x, __m256i frequency, __m256i gap, __m256i reciprocal,
                                   __m256i start) {
  // The quotient, or one less.
  const __m256i quotient = _mm256_mulhi_epu16(x, reciprocal);
  const __m256i remainder = _mm256_sub_epi16(x, _mm256_mullo_epi16(quotient, frequency));
  const __m256i exact = _mm256_cmpgt_epi16(frequency, remainder);
  const __m256i next =
      _mm256_add_epi16(_mm256_add_epi16(_mm256_slli_epi16(quotient, 8), start), remainder);
  return _mm256_add_epi16(next, _mm256_andnot_si256(exact, gap));
}

template <bool kFull>
TERRACE_AVX2_INLINE void EncodeRound(const RansTable& table, const uint8_t* from,
                                     const Active& active, Lanes* lanes, uint8_t** to) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i symbols = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if constexpr (!kFull) symbols = _mm256_and_si256(symbols, active.bytes);
  lanes->symbol_seen = _mm256_max_epu8(lanes->symbol_seen, symbols);
  const __m256i low = _mm256_add_epi8(symbols, _mm256_set1_epi8(0x70));
  const __m256i high = _mm256_sub_epi8(symbols, _mm256_set1_epi8(16));
  const __m256i gap8 = LookUp(table.gap8, low, high);
  const __m256i start8 = LookUp(table.start8, low, high);
  const __m256i reciprocal_low = LookUp(table.reciprocal_low, low, high);
  const __m256i reciprocal_high = LookUp(table.reciprocal_high, low, high);
  __m256i seen = reciprocal_high;
  if constexpr (!kFull) {
    seen = _mm256_or_si256(seen, _mm256_xor_si256(active.bytes, _mm256_set1_epi8(-1)));
  }
  lanes->reciprocal_seen = _mm256_min_epu8(lanes->reciprocal_seen, seen);
  const __m256i total = _mm256_set1_epi16(kRansTotal);
  const Words gap = {_mm256_unpacklo_epi8(gap8, zero), _mm256_unpackhi_epi8(gap8, zero)};
  const Words frequency = {_mm256_sub_epi16(total, gap.a), _mm256_sub_epi16(total, gap.b)};

  const Words old = lanes->x;
  const Words shifted = {_mm256_srli_epi16(old.a, 8), _mm256_srli_epi16(old.b, 8)};
  Words stay = {_mm256_cmpgt_epi16(frequency.a, shifted.a),
                _mm256_cmpgt_epi16(frequency.b, shifted.b)};
  uint32_t mask = ~_mm256_movemask_epi8(_mm256_packs_epi16(stay.a, stay.b));
  if constexpr (!kFull) mask &= _mm256_movemask_epi8(active.bytes);
  const __m256i bytes = _mm256_shuffle_epi8(PackLowBytes(old), LaneShuffle(kCompress, mask));
  uint8_t* at = *to;
  const auto write = [](uint8_t* place, int64_t eight) { std::memcpy(place, &eight, 8); };
  write(at, _mm256_extract_epi64(bytes, 3));
  write(at + std::popcount(mask >> 24), _mm256_extract_epi64(bytes, 2));
  write(at + std::popcount(mask >> 16), _mm256_extract_epi64(bytes, 1));
  write(at + std::popcount(mask >> 8), _mm256_extract_epi64(bytes, 0));
  *to = at + std::popcount(mask);

  const Words next = {Divide(_mm256_blendv_epi8(shifted.a, old.a, stay.a), frequency.a, gap.a,
                             _mm256_unpacklo_epi8(reciprocal_low, reciprocal_high),
                             _mm256_unpacklo_epi8(start8, zero)),
                      Divide(_mm256_blendv_epi8(shifted.b, old.b, stay.b), frequency.b, gap.b,
                             _mm256_unpackhi_epi8(reciprocal_low, reciprocal_high),
                             _mm256_unpackhi_epi8(start8, zero))};
  lanes->x = next;
  if constexpr (!kFull) {
    lanes->x = {_mm256_blendv_epi8(old.a, next.a, active.words.a),
                _mm256_blendv_epi8(old.b, next.b, active.words.b)};
  }
}

TERRACE_AVX2_INLINE bool Codable(const Lanes& lanes) {
  const __m256i none = _mm256_cmpeq_epi8(lanes.reciprocal_seen, _mm256_setzero_si256());
  const __m256i strange = _mm256_set1_epi8(static_cast<char>(~(kRansSymbols - 1)));
  return _mm256_testz_si256(none, none) != 0 && _mm256_testz_si256(lanes.symbol_seen, strange) != 0;
}

template <size_t... k>
TERRACE_AVX2_INLINE void EncodeEach(Encoding<sizeof...(k)>* encoding, std::index_sequence<k...>) {
  const RansTable* const tables = encoding->bank->tables;
  const RansShape shape = encoding->shape;
  const Active active = FirstLanes(shape.tail_lanes);
  const bool no_tail = shape.tail_lanes == kRansLanes;
  const __m256i first = _mm256_set1_epi16(kFirstState);
  const Lanes fresh = {{first, first}, _mm256_set1_epi8(-1), _mm256_setzero_si256()};
  Lanes lanes[] = {(static_cast<void>(k), fresh)...};
  uint8_t* at[] = {encoding->at[k]...};
  size_t from_tail = (shape.rounds_per_channel - shape.rounds % shape.rounds_per_channel) %
                     shape.rounds_per_channel;
  for (size_t round = shape.rounds; round-- > 0;) {
    if (no_tail || from_tail != 0) {
      (EncodeRound<true>(tables[encoding->schedule[k][round]],
                         encoding->symbols[k] + round * kRansLanes, active, &lanes[k], &at[k]),
       ...);
    } else {
      (EncodeRound<false>(tables[encoding->schedule[k][round]],
                          encoding->symbols[k] + round * kRansLanes, active, &lanes[k], &at[k]),
       ...);
    }
    from_tail = from_tail + 1 == shape.rounds_per_channel ? 0 : from_tail + 1;
  }
  (StoreStates(lanes[k].x, encoding->states[k]), ...);
  ((encoding->at[k] = at[k]), ...);
  ((encoding->ok[k] = Codable(lanes[k])), ...);
}

template <size_t kStreams>
TERRACE_AVX2 void EncodeRounds(Encoding<kStreams>* encoding) {
  EncodeEach(encoding, std::make_index_sequence<kStreams>());
}

// Pairs of streams: more would not fit the registers.
template <auto Group2>
constexpr auto kTwice = [](const RansTables& bank, const RansShape& shape, auto* const* streams) {
  const bool first = Group2(bank, shape, streams);
  return Group2(bank, shape, streams + 2) && first;
};

TERRACE_AVX2_INLINE __m256i ReverseBytes(__m256i bytes) {
  const __m256i order = _mm256_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 15,
                                         14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, order), 0x4e);
}

}  // namespace

TERRACE_AVX2 void ReverseAvx2(uint8_t* data, size_t bytes) {
  uint8_t* end = data + bytes;
  for (; end - data >= 64; data += 32, end -= 32) {
    auto* const first = reinterpret_cast<__m256i*>(data);
    auto* const last = reinterpret_cast<__m256i*>(end - 32);
    const __m256i swapped = ReverseBytes(_mm256_loadu_si256(first));
    _mm256_storeu_si256(first, ReverseBytes(_mm256_loadu_si256(last)));
    _mm256_storeu_si256(last, swapped);
  }
  std::reverse(data, end);
}

bool EncodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  constexpr auto kTwo = EncodeGroup<2, EncodeRounds<2>, ReverseAvx2>;
  return EncodeAll<kTwice<kTwo>, kTwo, EncodeGroup<1, EncodeRounds<1>, ReverseAvx2>>(bank, shape,
                                                                                     sources);
}

void DecodeRoundsAvx2(const Lockstep& common, Lane* lanes, size_t count, size_t rounds) {
  for (; count >= 2; count -= 2, lanes += 2) DecodeSome<2>(common, lanes, rounds);
  if (count != 0) DecodeSome<1>(common, lanes, rounds);
}

}  // namespace terrace::kernels::rans

#endif  // __x86_64__
