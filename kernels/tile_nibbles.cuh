// Codec 1 on a GPU (codec/nibble_codec.h): bfloat16 with its exponents as nibbles, or values as
// they are. A block of kSegments warps works on one tile, a stretch of its values each, in steps
// with barriers between them. A tile is its form, then for nibbles the 15 exponents, the codes of
// two values a byte, a byte of rest a value, and the exponents of the escapes.
#pragma once

#include "kernels/gpu_tile.h"
#include "kernels/tile_places.cuh"
#include "kernels/warp.h"

namespace terrace::kernels {

inline constexpr uint32_t kSegments = 8;
inline constexpr uint32_t kStepValues = 256;  // of a warp: 8 values a lane
inline constexpr uint32_t kRawForm = 0, kNibbleForm = 1;
inline constexpr uint32_t kFormBytes = 1, kCodesAt = 16;
inline constexpr uint32_t kEscapeCode = 15;

// Of one tile, in the memory that a block of warps shares.
struct NibbleState {
  uint32_t escapes[kSegments];  // of each
  uint32_t times[256];          // of each exponent in the sample; zero at first
  uint8_t exponents[kEscapeCode];
  uint8_t code_of[256];
};

TERRACE_GPU uint32_t ValuesOf(const NibbleJob& job) { return job.tokens * job.heads * job.dim; }
TERRACE_GPU uint32_t CodeBytes(uint32_t values) { return (values + 1) / 2; }

TERRACE_GPU uint8_t* ValuePlace(const NibbleJob& job, uint32_t v) {
  const uint32_t i = v % job.dim, row = v / job.dim;
  const uint32_t head = job.head_major ? row / job.tokens : row % job.heads;
  const uint32_t token = job.head_major ? row % job.tokens : row / job.heads;
  return TokenAt(job.places, job.first_token + token) + head * job.places.head_stride +
         size_t{i} * job.value_bytes;
}

// The values of a segment: [begin, end).
struct SegmentRange {
  uint32_t begin, end;

  TERRACE_GPU SegmentRange(const NibbleJob& job, uint32_t segment) {
    const uint32_t values = ValuesOf(job), steps = (values + kStepValues - 1) / kStepValues;
    const uint32_t each = (steps + kSegments - 1) / kSegments * kStepValues;
    begin = segment * each < values ? segment * each : values;
    end = values - begin < each ? values : begin + each;
  }
};

// A bit every four for the codes of escapes among the first `count` of 8.
TERRACE_GPU uint32_t EscapesIn(uint32_t codes, uint32_t count) {
  const uint32_t all = codes & codes >> 1 & codes >> 2 & codes >> 3 & 0x11111111;
  return count >= 8 ? all : all & ((1u << 4 * count) - 1);
}

// The sum of the escapes of the segments before this one, or of all.
TERRACE_GPU uint32_t EscapesBefore(const NibbleState& state, uint32_t segment) {
  uint32_t sum = 0;
  for (uint32_t s = 0; s < segment; ++s) sum += state.escapes[s];
  return sum;
}

// Between the engine's memory and a tile of raw form.
template <class Warp>
TERRACE_GPU void CopyRawValues(Warp& warp, const NibbleJob& job, uint32_t segment, bool to_tile) {
  const SegmentRange range(job, segment);
  warp.Each([&](uint32_t lane) {
    for (uint32_t v = range.begin + lane; v < range.end; v += 32) {
      uint8_t* const value = ValuePlace(job, v);
      uint8_t* const stored = job.tile + kFormBytes + size_t{v} * job.value_bytes;
      for (uint32_t b = 0; b < job.value_bytes; ++b) {
        (to_tile ? stored[b] : value[b]) = to_tile ? value[b] : stored[b];
      }
    }
  });
}

// Decoding, step 1: what the tile's length says; the same for every warp.
TERRACE_GPU TileStatus CheckNibbles(const NibbleJob& job) {
  const uint32_t values = ValuesOf(job);
  if (job.bytes == 0) return TileStatus::kShort;
  if (job.tile[0] == kRawForm) {
    const uint64_t raw_bytes = uint64_t{values} * job.value_bytes;
    return job.bytes == kFormBytes + raw_bytes ? TileStatus::kDone : TileStatus::kWrongLength;
  }
  if (job.tile[0] != kNibbleForm || !job.bf16) return TileStatus::kWrongForm;
  return job.bytes < kCodesAt + CodeBytes(values) + values ? TileStatus::kShort : TileStatus::kDone;
}

// Step 2, of tiles that are good and of nibbles.
template <class Warp>
TERRACE_GPU void CountEscapes(Warp& warp, const NibbleJob& job, NibbleState& state,
                              uint32_t segment) {
  const SegmentRange range(job, segment);
  const Words<Warp> codes(job.tile + kCodesAt, CodeBytes(ValuesOf(job)));
  const uint32_t escapes = warp.Sum([&](uint32_t lane) {
    uint32_t sum = 0;
    for (uint32_t v = range.begin + 8 * lane; v < range.end; v += kStepValues) {
      sum += Warp::Count(EscapesIn(codes.At(v / 8), range.end - v));
    }
    return sum;
  });
  warp.Each([&](uint32_t lane) {
    if (lane == 0) state.escapes[segment] = escapes;
  });
}

TERRACE_GPU TileStatus CheckEscapes(const NibbleJob& job, const NibbleState& state) {
  const uint32_t values = ValuesOf(job);
  const uint32_t stored = job.bytes - kCodesAt - CodeBytes(values) - values;
  return EscapesBefore(state, kSegments) == stored ? TileStatus::kDone : TileStatus::kWrongEscapes;
}

// `count` of 8 values from `v` on.
template <class Warp>
TERRACE_GPU void StoreHalves(const NibbleJob& job, uint32_t v, const uint32_t (&words)[4],
                             uint32_t count) {
  uint8_t* const to = ValuePlace(job, v);
  if (count >= 8 && job.dim % 8 == 0 && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    Warp::Store4(to, words);
    return;
  }
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    if (i < count) PutBytes(ValuePlace(job, v + i), words[i / 2] >> i % 2 * 16, 2);
  }
}

// Step 3, once CheckEscapes is content.
template <class Warp>
TERRACE_GPU void UnpackSegment(Warp& warp, const NibbleJob& job, const NibbleState& state,
                               uint32_t segment) {
  const SegmentRange range(job, segment);
  const uint32_t values = ValuesOf(job), code_bytes = CodeBytes(values);
  const Words<Warp> codes(job.tile + kCodesAt, code_bytes);
  const Words<Warp> rests(job.tile + kCodesAt + code_bytes, values);
  const uint8_t* const exponents = job.tile + kFormBytes;
  const uint8_t* escapes =
      job.tile + kCodesAt + code_bytes + values + EscapesBefore(state, segment);
  for (uint32_t first = range.begin; first < range.end; first += kStepValues) {
    typename Warp::template Lanes<uint32_t> word, before;
    warp.Each([&](uint32_t lane) {
      const uint32_t v = first + 8 * lane;
      word[lane] = v < range.end ? codes.At(v / 8) : 0;
      before[lane] = v < range.end ? Warp::Count(EscapesIn(word[lane], range.end - v)) : 0;
    });
    const uint32_t all = warp.Scan(before);
    warp.Each([&](uint32_t lane) {
      const uint32_t v = first + 8 * lane;
      if (v >= range.end) return;
      const uint32_t rest[2] = {rests.At(v / 4), rests.At(v / 4 + 1)};
      const uint8_t* escape = escapes + before[lane];
      uint32_t halves[4] = {};
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        if (v + i >= range.end) continue;
        const uint32_t code = word[lane] >> 4 * i & 15;
        const uint32_t exponent = code == kEscapeCode ? *escape++ : exponents[code];
        const uint32_t turned = exponent << 8 | (rest[i / 4] >> i % 4 * 8 & 0xff);
        halves[i / 2] |= (turned >> 1 | (turned & 1) << 15) << i % 2 * 16;
      }
      StoreHalves<Warp>(job, v, halves, range.end - v);
    });
    escapes += all;
  }
}

// A value rotated left by one bit: its exponent above its rest.
TERRACE_GPU uint32_t TurnedValue(const NibbleJob& job, uint32_t v) {
  const uint32_t value = BytesAt(ValuePlace(job, v), 2);
  return (value << 1 | value >> 15) & 0xffff;
}

// Encoding, step 1: the exponents of every seventh value (kernels::ChooseExponents).
template <class Warp>
TERRACE_GPU void SampleExponents(Warp& warp, const NibbleJob& job, NibbleState& state,
                                 uint32_t segment) {
  const uint32_t values = ValuesOf(job);
  warp.Each([&](uint32_t lane) {
    for (uint32_t v = 7 * (segment * 32 + lane); v < values; v += 7 * 32 * kSegments) {
      Warp::AtomicAdd(&state.times[TurnedValue(job, v) >> 8], 1);
    }
  });
}

// Step 2: the most frequent get codes, of equal ones the lower.
template <class Warp>
TERRACE_GPU void RankExponents(Warp& warp, NibbleState& state, uint32_t segment) {
  static_assert(32 * kSegments == 256);
  warp.Each([&](uint32_t lane) {
    const uint32_t exponent = segment * 32 + lane, times = state.times[exponent];
    uint32_t rank = 0;
    for (uint32_t other = 0; other < 256; ++other) {
      const uint32_t of_other = state.times[other];
      rank += of_other > times || (of_other == times && other < exponent) ? 1 : 0;
    }
    state.code_of[exponent] = static_cast<uint8_t>(rank < kEscapeCode ? rank : kEscapeCode);
    if (rank < kEscapeCode) state.exponents[rank] = static_cast<uint8_t>(exponent);
  });
}

// Step 3.
template <class Warp>
TERRACE_GPU void CountUncoded(Warp& warp, const NibbleJob& job, NibbleState& state,
                              uint32_t segment) {
  const SegmentRange range(job, segment);
  const uint32_t escapes = warp.Sum([&](uint32_t lane) {
    uint32_t sum = 0;
    for (uint32_t v = range.begin + lane; v < range.end; v += 32) {
      sum += state.code_of[TurnedValue(job, v) >> 8] == kEscapeCode ? 1 : 0;
    }
    return sum;
  });
  warp.Each([&](uint32_t lane) {
    if (lane == 0) state.escapes[segment] = escapes;
  });
}

// Step 4: the bytes of a segment, by `escapes` of all segments. Returns those of the whole tile; 0
// when they are more than its room.
template <class Warp>
TERRACE_GPU uint32_t PackSegment(Warp& warp, const NibbleJob& job, const NibbleState& state,
                                 uint32_t segment) {
  const SegmentRange range(job, segment);
  const uint32_t values = ValuesOf(job), rests_at = kCodesAt + CodeBytes(values);
  const uint32_t raw_size = kFormBytes + values * job.value_bytes;
  const uint32_t nibble_size = rests_at + values + EscapesBefore(state, kSegments);
  const bool raw = !job.bf16 || nibble_size >= raw_size;
  const uint32_t size = raw ? raw_size : nibble_size;
  if (size > job.bytes) return 0;
  if (segment == 0) {
    warp.Each([&](uint32_t lane) {
      if (lane == 0) job.tile[0] = static_cast<uint8_t>(raw ? kRawForm : kNibbleForm);
      if (!raw && lane < kEscapeCode) job.tile[kFormBytes + lane] = state.exponents[lane];
    });
  }
  if (raw) {
    CopyRawValues(warp, job, segment, true);
    return size;
  }
  uint8_t* escapes = job.tile + rests_at + values + EscapesBefore(state, segment);
  for (uint32_t first = range.begin; first < range.end; first += kStepValues) {
    typename Warp::template Lanes<uint32_t> codes, before;
    warp.Each([&](uint32_t lane) {
      const uint32_t v = first + 8 * lane, left = v < range.end ? range.end - v : 0;
      codes[lane] = 0;
      for (uint32_t i = 0; i < 8 && i < left; ++i) {
        const uint32_t turned = TurnedValue(job, v + i);
        codes[lane] |= static_cast<uint32_t>(state.code_of[turned >> 8]) << 4 * i;
        job.tile[rests_at + v + i] = static_cast<uint8_t>(turned);
      }
      if (left != 0) {
        PutBytes(job.tile + kCodesAt + v / 2, codes[lane], left < 8 ? CodeBytes(left) : 4);
      }
      before[lane] = Warp::Count(EscapesIn(codes[lane], left));
    });
    const uint32_t all = warp.Scan(before);
    warp.Each([&](uint32_t lane) {
      const uint32_t v = first + 8 * lane;
      uint8_t* escape = escapes + before[lane];
      for (uint32_t i = 0; i < 8 && v + i < range.end; ++i) {
        if ((codes[lane] >> 4 * i & 15) != kEscapeCode) continue;
        *escape++ = static_cast<uint8_t>(TurnedValue(job, v + i) >> 8);
      }
    });
    escapes += all;
  }
  return size;
}

}  // namespace terrace::kernels
