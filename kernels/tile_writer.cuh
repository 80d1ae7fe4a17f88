// One warp makes the bytes of one tile from its coefficients: the encoder to
// kernels/tile_stream.cuh. Rounds are coded from the last to the first, into scratch from its end
// backwards, so that the bytes lie in the order in which they are read; then the rest of the tile
// is laid out after them.
#pragma once

#include "kernels/gpu_tile.h"
#include "kernels/tile_places.cuh"
#include "kernels/tile_rounds.h"
#include "kernels/tile_values.cuh"
#include "kernels/warp.h"

namespace terrace::kernels {

// What a coefficient is coded as.
struct CodedValue {
  uint32_t symbol;  // kEscapeSymbol: it is in the list
  uint32_t low;     // below the symbol; 0 of an escape
};

TERRACE_GPU CodedValue CodeOf(int32_t q, uint32_t bits, const EncodeSymbol* table) {
  const int32_t biased = q + static_cast<int32_t>((1u << bits) >> 1), high = biased >> bits;
  if (high < -15 || high > 15 || table[high + 15].frequency == 0) return {kEscapeSymbol, 0};
  return {static_cast<uint32_t>(high + 15), static_cast<uint32_t>(biased) & ((1u << bits) - 1)};
}

template <class Warp>
class RoundsWriter {
 public:
  // Writes downwards from `end`.
  TERRACE_GPU RoundsWriter(Warp& warp, uint8_t* end) : warp_(warp), at_(end), end_(end) {
    warp_.Each([&](uint32_t lane) { state_[lane] = 256; });
  }
  // symbol(lane) of the active lanes, of frequencies above 0.
  template <typename Symbol>
  TERRACE_GPU void Encode(const EncodeSymbol* table, uint32_t active, Symbol symbol) {
    typename Warp::template Lanes<EncodeSymbol> coded;
    const uint32_t giving = warp_.Ballot([&](uint32_t lane) {
      if ((active >> lane & 1) == 0) return false;
      coded[lane] = table[symbol(lane)];
      return state_[lane] >= static_cast<uint32_t>(coded[lane].frequency) << 8;
    });
    at_ -= Warp::Count(giving);
    warp_.Each([&](uint32_t lane) {
      if ((active >> lane & 1) == 0) return;
      uint32_t x = state_[lane];
      if ((giving >> lane & 1) != 0) {
        at_[Warp::Count(giving & ((1u << lane) - 1))] = static_cast<uint8_t>(x);
        x >>= 8;
      }
      const uint32_t frequency = coded[lane].frequency;
      uint32_t quotient = x * coded[lane].reciprocal >> 16;  // or one less than it is
      uint32_t rest = x - quotient * frequency;
      if (rest >= frequency) {
        ++quotient;
        rest -= frequency;
      }
      state_[lane] = (quotient << 8) + rest + coded[lane].start;
    });
  }
  TERRACE_GPU uint32_t bytes() const { return static_cast<uint32_t>(end_ - at_); }
  TERRACE_GPU const uint8_t* begin() const { return at_; }
  TERRACE_GPU void PutStates(uint32_t stored, uint8_t* to) {
    warp_.Each([&](uint32_t lane) {
      if (lane < stored) PutBytes(to + 2 * lane, state_[lane], 2);
    });
  }

 private:
  Warp& warp_;
  uint8_t* at_;
  uint8_t* end_;
  typename Warp::template Lanes<uint32_t> state_;
};

// The tile that is being encoded.
template <class Warp>
struct TileWriter {
  Warp& warp;
  const EncodeSymbol* tables;
  const EncodeJob& job;
  const EncodeRows& rows;
  const TilePlaces& places;
  uint32_t part, groups, tail_active;

  TERRACE_GPU uint32_t Active(uint32_t group) const {
    return group + 1 == groups ? tail_active : ~0u;
  }
  TERRACE_GPU uint32_t TableOf(uint32_t c, uint32_t group) const {
    return TableOfScale(job.sections[part].scale16[c], places.shift[group]);
  }
  TERRACE_GPU int32_t ValueOf(uint32_t c, uint32_t group, uint32_t lane) const {
    const uint32_t place = group * 32 + lane;
    return place < places.raw || place >= job.tokens ? 0
                                                     : rows.Quantised(part, c)[places.token[place]];
  }

  // All rounds. Returns the number of escapes.
  TERRACE_GPU uint32_t EncodeRounds(RoundsWriter<Warp>& writer) {
    uint32_t escapes = 0;
    for (uint32_t c = rows.channels[part]; c-- > 0;) {
      for (uint32_t g = groups; g-- > 0;) {
        const uint32_t table_id = TableOf(c, g), bits = LowBitsOfTable(table_id);
        const EncodeSymbol* table = tables + table_id * kRansSymbols;
        typename Warp::template Lanes<uint32_t> symbols;
        const uint32_t escaped = warp.Ballot([&](uint32_t lane) {
          symbols[lane] = CodeOf(ValueOf(c, g, lane), bits, table).symbol;
          return symbols[lane] == kEscapeSymbol && (Active(g) >> lane & 1) != 0;
        });
        escapes += Warp::Count(escaped);
        writer.Encode(table, Active(g), [&](uint32_t lane) { return symbols[lane]; });
      }
    }
    for (uint32_t g = groups; g-- > 0;) {
      writer.Encode(tables + kLevelTable * kRansSymbols, Active(g), [&](uint32_t lane) {
        return static_cast<uint32_t>(places.level[g * 32 + lane] - kRawLevel);
      });
    }
    return escapes;
  }

  // Low bits and escapes, in the order of rounds.
  TERRACE_GPU void PutRest(uint8_t* low, uint8_t* escapes) {
    for (uint32_t c = 0; c < rows.channels[part]; ++c) {
      for (uint32_t g = 0; g < groups; ++g) {
        const uint32_t table_id = TableOf(c, g), bits = LowBitsOfTable(table_id);
        const EncodeSymbol* table = tables + table_id * kRansSymbols;
        typename Warp::template Lanes<CodedValue> coded;
        const uint32_t escaped = warp.Ballot([&](uint32_t lane) {
          coded[lane] = CodeOf(ValueOf(c, g, lane), bits, table);
          if ((Active(g) >> lane & 1) == 0) coded[lane].low = 0;
          return coded[lane].symbol == kEscapeSymbol && (Active(g) >> lane & 1) != 0;
        });
        for (uint32_t b = 0; b < bits; ++b, low += 4) {
          const uint32_t word =
              warp.Ballot([&](uint32_t lane) { return (coded[lane].low >> b & 1) != 0; });
          warp.Each([&](uint32_t lane) {
            if (lane < 4) low[lane] = static_cast<uint8_t>(word >> 8 * lane);
          });
        }
        if (escaped == 0) continue;
        warp.Each([&](uint32_t lane) {
          if ((escaped >> lane & 1) == 0) return;
          uint8_t* entry = escapes + Warp::Count(escaped & ((1u << lane) - 1)) * kEscapeEntryBytes;
          PutBytes(entry, (groups * (1 + c) + g) * 32 + lane, 4);
          PutBytes(entry + 4, static_cast<uint32_t>(ValueOf(c, g, lane)), 2);
        });
        escapes += Warp::Count(escaped) * kEscapeEntryBytes;
      }
    }
  }

  TERRACE_GPU void PutRawTokens(uint32_t value_bytes, uint8_t* to) {
    const ColumnShape& shape = job.sections[part].shape;
    const KvPlaces& from = job.from[part];
    const uint32_t channels = rows.channels[part];
    for (uint32_t place = 0; place < places.raw; ++place, to += size_t{channels} * value_bytes) {
      const uint8_t* token = TokenAt(from, job.first_token + places.token[place]);
      warp.Each([&](uint32_t lane) {
        for (uint32_t c = lane; c < channels; c += 32) {
          const uint8_t* value =
              token + c / shape.dim * from.head_stride + c % shape.dim * value_bytes;
          for (uint32_t b = 0; b < value_bytes; ++b) to[c * value_bytes + b] = value[b];
        }
      });
    }
  }
};

// The bytes of one section's tile to job.out[part]. Returns how many; 0 when they are more than its
// capacity.
template <class Warp>
TERRACE_GPU uint32_t WriteTile(Warp& warp, const EncodeSymbol* tables, const EncodeJob& job,
                               uint32_t value_bytes, const EncodeRows& rows, EncodeState& state,
                               uint32_t part) {
  const GpuSection& section = job.sections[part];
  const uint32_t channels = rows.channels[part], groups = GroupsOf(job);
  const uint32_t tail = job.tokens - 32 * (groups - 1), stored = groups == 1 ? tail : 32;
  TilePlaces& places = state.places[part];
  KeepUnfit(warp, job.tokens, state, part);
  SortPlaces(warp, job.tokens, section.level_slope, job.lambda16, places);
  TileWriter<Warp> tile{warp, tables, job, rows, places, part, groups, ~0u >> (32 - tail)};
  RoundsWriter<Warp> writer(warp, rows.Stream(part) + size_t{1 + channels} * kTilePlaces);
  const uint32_t escapes = tile.EncodeRounds(writer);
  warp.Sync();

  const uint32_t stream_bytes = 2 * stored + writer.bytes();
  const uint32_t low_at = kTileHeaderBytes + stream_bytes;
  const uint32_t escapes_at = low_at + 4 * LowWords(warp, section, groups, places);
  const uint32_t raw_at = escapes_at + escapes * kEscapeEntryBytes;
  const uint64_t size = raw_at + uint64_t{places.raw} * channels * value_bytes;
  uint8_t* const out = job.out[part];
  if (size > job.capacity) return 0;
  warp.Each([&](uint32_t lane) {
    if (lane == 0) PutBytes(out, stream_bytes, 4);
    if (lane == 1) PutBytes(out + 4, escapes, 4);
    for (uint32_t i = lane; i < writer.bytes(); i += 32) {
      out[kTileHeaderBytes + 2 * stored + i] = writer.begin()[i];
    }
  });
  writer.PutStates(stored, out + kTileHeaderBytes);
  tile.PutRest(out + low_at, out + escapes_at);
  tile.PutRawTokens(value_bytes, out + raw_at);
  return static_cast<uint32_t>(size);
}

}  // namespace terrace::kernels
