// One warp decodes the stream of one tile (docs/formats/chunk.md, "A tile of codec 3"): a lane of
// the stream is a lane of the warp, and a vote says which of them take the next bytes.
#pragma once

#include "kernels/gpu_tile.h"
#include "kernels/tile_places.cuh"
#include "kernels/tile_rounds.h"
#include "kernels/warp.h"

namespace terrace::kernels {

// The words of low bits in order: 32 of them in the lanes, the next 32 on their way.
template <class Warp>
class LowBits {
 public:
  TERRACE_GPU LowBits(Warp& warp, const Words<Warp>& words) : warp_(warp), words_(words) {
    warp_.Each([&](uint32_t lane) {
      now_[lane] = words_.At(lane);
      next_[lane] = words_.At(32 + lane);
    });
  }
  TERRACE_GPU uint32_t Take() {
    if (at_ % 32 == 0 && at_ != 0) {
      warp_.Each([&](uint32_t lane) {
        now_[lane] = next_[lane];
        next_[lane] = words_.At(at_ + 32 + lane);
      });
    }
    return warp_.From(now_, at_++ % 32);
  }

 private:
  Warp& warp_;
  Words<Warp> words_;
  typename Warp::template Lanes<uint32_t> now_, next_;
  uint32_t at_ = 0;
};

// The states and the bytes of a stream. The bytes pass through a ring of two halves of 128; what
// comes after them is on its way in the lanes. Past the end of the stream the bytes mean nothing.
template <class Warp>
class Rounds {
 public:
  using Symbols = typename Warp::template Lanes<uint32_t>;

  // A stream of at least 2 * `stored` bytes.
  TERRACE_GPU Rounds(Warp& warp, uint32_t* ring, const uint8_t* data, uint32_t size,
                     uint32_t stored)
      : warp_(warp), ring_(ring) {
    const uint32_t bytes = size - 2 * stored;
    const uint8_t* const first = data + 2 * stored;
    const auto skew = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(first) & 3);
    aligned_ = first - skew;
    words_ = (skew + bytes + 3) / 4;
    at_ = skew;
    end_ = skew + bytes;
    warp_.Each([&](uint32_t lane) {
      state_[lane] = lane < stored ? BytesAt(data + 2 * lane, 2) : 256;
      ring_[lane] = Word(lane);
      ring_[32 + lane] = Word(32 + lane);
      ahead_[lane] = Word(64 + lane);
    });
    warp_.Sync();
  }
  TERRACE_GPU bool PossibleStates() {
    return warp_.Ballot([&](uint32_t lane) { return state_[lane] < 256; }) == 0;
  }

  // `table` as PackDecodeTables makes it. Symbols of lanes that are not active mean nothing.
  TERRACE_GPU void Decode(const uint32_t* table, uint32_t active, Symbols& symbols) {
    const uint32_t taking = warp_.Ballot([&](uint32_t lane) {
      const uint32_t x = state_[lane], entry = table[x & 255];
      const bool on = (active >> lane & 1) != 0;
      const uint32_t next = (entry >> 8 & 0x1ff) * (x >> 8) + (entry & 255);
      symbols[lane] = entry >> 24;
      if (on) state_[lane] = next;
      return on && next < 256;
    });
    warp_.Each([&](uint32_t lane) {
      if ((taking >> lane & 1) == 0) return;
      const uint32_t before = Warp::Count(taking & ((1u << lane) - 1));
      state_[lane] =
          state_[lane] << 8 | reinterpret_cast<const uint8_t*>(ring_)[(at_ + before) % 256];
    });
    const uint32_t half = at_ / 128;
    at_ += Warp::Count(taking);
    if (at_ / 128 != half) Advance(half);
  }

  // Whether all bytes were taken and the states are the encoder's first.
  TERRACE_GPU bool Ended() {
    return at_ == end_ && warp_.Ballot([&](uint32_t lane) { return state_[lane] != 256; }) == 0;
  }

 private:
  TERRACE_GPU uint32_t Word(uint32_t i) const {
    return i < words_ ? Warp::Load(aligned_ + size_t{4} * i) : 0;
  }
  TERRACE_GPU void Advance(uint32_t half) {
    warp_.Sync();
    warp_.Each([&](uint32_t lane) {
      ring_[half % 2 * 32 + lane] = ahead_[lane];
      ahead_[lane] = Word(32 * (half + 3) + lane);
    });
    warp_.Sync();
  }

  Warp& warp_;
  uint32_t* ring_;
  const uint8_t* aligned_;  // the word of the first byte
  uint32_t words_, at_, end_;
  typename Warp::template Lanes<uint32_t> state_, ahead_;
};

// The list of escapes, taken in the order of places.
struct EscapeList {
  const uint8_t* at;
  uint32_t left;
};

// Coefficients of the lanes in `escaped`, of places from first_place on. False if the list has
// others.
template <class Warp>
TERRACE_GPU bool TakeEscapes(Warp& warp, uint32_t escaped, uint32_t first_place, EscapeList& list,
                             typename Warp::template Lanes<uint32_t>& values) {
  const uint32_t count = Warp::Count(escaped);
  if (count > list.left) return false;
  const uint32_t wrong = warp.Ballot([&](uint32_t lane) {
    if ((escaped >> lane & 1) == 0) return false;
    const uint8_t* entry = list.at + Warp::Count(escaped & ((1u << lane) - 1)) * kEscapeEntryBytes;
    values[lane] = BytesAt(entry + 4, 2);
    return BytesAt(entry, 4) != first_place + lane;
  });
  list.at += count * kEscapeEntryBytes;
  list.left -= count;
  return wrong == 0;
}

// The coefficients' rounds. Scratch as DecodeScratchBytes. False if the escapes are wrong.
template <uint32_t kGroups, class Warp>
TERRACE_GPU bool DecodeCoefficients(Warp& warp, const GpuSection& section, const uint32_t* tables,
                                    uint32_t tail_active, const TilePlaces& places,
                                    Rounds<Warp>& rounds, LowBits<Warp>& low, EscapeList list,
                                    uint32_t* scratch) {
  using Values = typename Warp::template Lanes<uint32_t>;
  const ColumnShape& shape = section.shape;
  const uint32_t channels = shape.heads * shape.dim, block = shape.ScratchBlock();
  const uint32_t high_words = shape.ScratchCoefficients() / 4 * kTilePlaces;
  Values low_word[kGroups], high_word[kGroups];
  bool good = true;
  const int16_t* const scales = section.scale16;
  int32_t shift[kGroups];
  TERRACE_UNROLL
  for (uint32_t g = 0; g < kGroups; ++g) shift[g] = places.shift[g];
  int32_t scale16 = scales[0];
  uint32_t row = 0, in_block = 0;
  for (uint32_t c = 0; c < channels; ++c) {
    const int32_t scale = scale16;
    scale16 = scales[c + 1 < channels ? c + 1 : c];  // on its way during these rounds
    const bool last_of_word = in_block % 4 == 3 || in_block + 1 == block;
    TERRACE_UNROLL
    for (uint32_t g = 0; g < kGroups; ++g) {
      const uint32_t table = TableOfScale(scale, shift[g]);
      const uint32_t active = g + 1 == kGroups ? tail_active : ~0u;
      const uint32_t bits = LowBitsOfTable(table);
      Values values;
      rounds.Decode(tables + table * kRansTotal, active, values);
      const uint32_t escaped = warp.Ballot([&](uint32_t lane) {
        return values[lane] == kEscapeSymbol && (active >> lane & 1) != 0;
      });
      warp.Each([&](uint32_t lane) {
        values[lane] = ((values[lane] - kZeroSymbol) << bits) - ((1u << bits) >> 1);
      });
      TERRACE_ROLLED
      for (uint32_t b = 0; b < bits; ++b) {
        const uint32_t word = low.Take();
        warp.Each([&](uint32_t lane) { values[lane] += (word >> lane & 1) << b; });
      }
      if (escaped != 0) {
        const uint32_t round = kGroups * (1 + c) + g;
        good = TakeEscapes(warp, escaped, round * 32, list, values) && good;
      }
      warp.Each([&](uint32_t lane) {
        low_word[g][lane] = low_word[g][lane] >> 8 | values[lane] << 24;
        high_word[g][lane] = high_word[g][lane] >> 8 | (values[lane] & 0xff00) << 16;
        if (!last_of_word) return;
        const uint32_t unfilled = 8 * (3 - in_block % 4);
        uint32_t* const word = scratch + row / 4 * kTilePlaces + g * 32 + lane;
        word[0] = low_word[g][lane] >> unfilled;
        word[high_words] = high_word[g][lane] >> unfilled;
      });
    }
    ++row;
    if (++in_block == block) {
      in_block = 0;
      row = (row + kSlab - 1) / kSlab * kSlab;
    }
  }
  return good && list.left == 0;
}

template <class Warp>
TERRACE_GPU TileStatus DecodeTile(Warp& warp, const uint32_t* tables, const DecodeJob& job,
                                  uint32_t value_bytes, uint32_t* scratch, TilePlaces& places) {
  const GpuSection& section = *job.section;
  const uint32_t channels = section.shape.heads * section.shape.dim, tokens = job.tokens;
  const uint32_t groups = (tokens + 31) / 32, tail = tokens - 32 * (groups - 1);
  const uint32_t tail_active = ~0u >> (32 - tail), stored = groups == 1 ? tail : 32;
  if (job.bytes < kTileHeaderBytes) return TileStatus::kShort;
  const uint32_t stream_bytes = BytesAt(job.tile, 4), escapes = BytesAt(job.tile + 4, 4);
  const uint32_t rest = job.bytes - kTileHeaderBytes;
  if (stream_bytes > rest || stream_bytes < 2 * stored) return TileStatus::kStreamCutOff;
  const uint8_t* const stream = job.tile + kTileHeaderBytes;
  Rounds<Warp> rounds(warp, places.ring, stream, stream_bytes, stored);
  if (!rounds.PossibleStates()) return TileStatus::kStreamDamaged;

  for (uint32_t g = 0; g < groups; ++g) {
    typename Warp::template Lanes<uint32_t> symbols;
    rounds.Decode(tables + kLevelTable * kRansTotal, g + 1 == groups ? tail_active : ~0u, symbols);
    warp.Each([&](uint32_t lane) {
      places.level[32 * g + lane] =
          static_cast<int8_t>(static_cast<int32_t>(symbols[lane]) + kRawLevel);
    });
  }
  SortPlaces(warp, tokens, section.level_slope, job.lambda16, places);

  const uint32_t low_words = LowWords(warp, section, groups, places);
  const uint64_t raw_at = uint64_t{kTileHeaderBytes} + stream_bytes + uint64_t{4} * low_words +
                          uint64_t{kEscapeEntryBytes} * escapes;
  const uint64_t raw_bytes = uint64_t{places.raw} * channels * value_bytes;
  if (job.bytes != raw_at + raw_bytes) return TileStatus::kWrongLength;
  warp.Each([&](uint32_t lane) {
    if (lane == 0) places.raw_at = static_cast<uint32_t>(raw_at);
  });

  LowBits<Warp> low(warp, Words<Warp>(stream + stream_bytes, 4 * low_words));
  const EscapeList list{stream + stream_bytes + size_t{4} * low_words, escapes};
  bool good = false;
  const auto decode = [&]<uint32_t kGroups>() {
    good = DecodeCoefficients<kGroups>(warp, section, tables, tail_active, places, rounds, low,
                                       list, scratch);
  };
  if (groups == 1) decode.template operator()<1>();
  if (groups == 2) decode.template operator()<2>();
  if (groups == 3) decode.template operator()<3>();
  if (groups == 4) decode.template operator()<4>();
  if (!rounds.Ended()) return TileStatus::kStreamDamaged;
  return good ? TileStatus::kDone : TileStatus::kWrongEscapes;
}

}  // namespace terrace::kernels
