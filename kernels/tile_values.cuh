// From an engine's values to coefficients (codec/tile_encoder.h, on a GPU): un-rotated, given
// levels, transformed and rounded. A block of warps works on one tile of a layer, in three steps
// with a barrier after each: items of LoadValues, of ChooseLevels, of Quantise.
#pragma once

#include "kernels/float_format.h"
#include "kernels/gpu_tile.h"
#include "kernels/tile_math.h"
#include "kernels/tile_places.cuh"
#include "kernels/warp.h"

namespace terrace::kernels {

// Of one job, in the memory that a block of warps shares.
struct EncodeState {
  TilePlaces places[2];                // of K and V; levels of tokens first
  uint32_t magnitude[2][kTilePlaces];  // sum of a token's coefficients; zero at first
  uint32_t unfit[2][kTilePlaces];      // not 0: one is past int16; zero at first
};

// Of one job in scratch, each row of kTilePlaces tokens; V's channels follow K's.
struct EncodeRows {
  float* values;       // [channel][token]: un-rotated, then without their mean
  int16_t* quantised;  // [coefficient][token]
  uint8_t* streams;    // 2 of [kTilePlaces * (1 + channels)]
  uint32_t channels[2];

  TERRACE_GPU EncodeRows(const EncodeJob& job, uint8_t* scratch)
      : channels{job.sections[0].shape.heads * job.sections[0].shape.dim,
                 job.sections[1].shape.heads * job.sections[1].shape.dim} {
    const size_t rows = size_t{channels[0]} + channels[1];
    values = reinterpret_cast<float*>(scratch);
    quantised = reinterpret_cast<int16_t*>(values + rows * kTilePlaces);
    streams = reinterpret_cast<uint8_t*>(quantised + rows * kTilePlaces);
  }
  TERRACE_GPU float* Values(uint32_t part, uint32_t channel) const {
    return values + size_t{part * channels[0] + channel} * kTilePlaces;
  }
  TERRACE_GPU int16_t* Quantised(uint32_t part, uint32_t channel) const {
    return quantised + size_t{part * channels[0] + channel} * kTilePlaces;
  }
  // Room for a byte a symbol.
  TERRACE_GPU uint8_t* Stream(uint32_t part) const {
    return streams + size_t{part * (1 + channels[0])} * kTilePlaces;
  }
};

TERRACE_GPU uint32_t GroupsOf(const EncodeJob& job) { return (job.tokens + 31) / 32; }

TERRACE_GPU float ValueAt(ValueFormat format, const uint8_t* head, uint32_t i) {
  const uint32_t bits = BytesAt(head + i * BytesOf(format), BytesOf(format));
  if (format == ValueFormat::kF32) return std::bit_cast<float>(bits);
  const auto half = static_cast<uint16_t>(bits);
  return format == ValueFormat::kBf16 ? FloatOfBf16(half) : FloatOfF16(half);
}

TERRACE_GPU uint32_t LoadItems(const EncodeJob& job) {
  return (job.sections[0].shape.heads + job.sections[1].shape.heads) * GroupsOf(job);
}

// One head of 32 tokens.
template <class Warp>
TERRACE_GPU void LoadValues(Warp& warp, const EncodeJob& job, ValueFormat format,
                            const EncodeRows& rows, uint32_t item) {
  const uint32_t group = item % GroupsOf(job), heads = job.sections[0].shape.heads;
  const uint32_t part = item / GroupsOf(job) / heads, head = item / GroupsOf(job) % heads;
  const ColumnShape& shape = job.sections[part].shape;
  warp.Each([&](uint32_t lane) {
    const uint32_t token = group * 32 + lane;
    if (token >= job.tokens) return;
    const uint8_t* const from =
        TokenAt(job.from[part], job.first_token + token) + head * job.from[part].head_stride;
    float* const to = rows.Values(part, head * shape.dim) + token;
    const uint32_t pairs = shape.rotary_dim / 2;
    for (uint32_t i = 0; i < pairs; ++i) {
      const bool half = shape.pairing == RopePairing::kHalf;
      const uint32_t first = half ? i : 2 * i, second = half ? pairs + i : 2 * i + 1;
      const float x = ValueAt(format, from, first), y = ValueAt(format, from, second);
      const Turn& turn = job.turns[size_t{token} * pairs + i];
      to[first * kTilePlaces] = Warp::Fma(x, turn.cosine, Warp::Mul(y, turn.sine));
      to[second * kTilePlaces] = Warp::Fma(y, turn.cosine, -Warp::Mul(x, turn.sine));
    }
    for (uint32_t i = shape.rotary_dim; i < shape.dim; ++i) {
      to[i * kTilePlaces] = ValueAt(format, from, i);
    }
  });
}

// kernels::Dot of a row with itself and with two rows of weights (null: 0).
template <class Warp>
struct Dots {
  float of_row, of_weights[2];

  TERRACE_GPU Dots(const float* column, uint32_t count, const float* weights_a,
                   const float* weights_b) {
    float sums[3][16] = {};
    for (uint32_t first = 0; first < count; first += 16) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 16; ++i) {
        if (first + i >= count) continue;
        const float value = column[size_t{first + i} * kTilePlaces];
        sums[0][i] = Warp::Fma(value, value, sums[0][i]);
        if (weights_a == nullptr) continue;
        sums[1][i] = Warp::Fma(weights_a[first + i], value, sums[1][i]);
        sums[2][i] = Warp::Fma(weights_b[first + i], value, sums[2][i]);
      }
    }
    TERRACE_UNROLL
    for (uint32_t half = 8; half != 0; half /= 2) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        if (i >= half) continue;
        for (uint32_t k = 0; k < 3; ++k) sums[k][i] = Warp::Add(sums[k][i], sums[k][i + half]);
      }
    }
    of_row = sums[0][0];
    of_weights[0] = sums[1][0];
    of_weights[1] = sums[2][0];
  }
};

TERRACE_GPU bool Finite(float value) {
  return (std::bit_cast<uint32_t>(value) & 0x7f800000) != 0x7f800000;
}

// From the product of a token's channels with the weights; `last` are the last three weights.
template <class Warp>
TERRACE_GPU int32_t LevelOf(float octaves, const float* last, float k_norm, float v_norm) {
  octaves = Warp::Add(octaves, Warp::Mul(last[0], RoughLog2(k_norm)));
  octaves = Warp::Add(octaves, Warp::Mul(last[1], RoughLog2(v_norm)));
  octaves = Warp::Add(octaves, last[2]);
  const float level = Warp::Floor(Warp::Add(Warp::Mul(octaves, 4.0f), 0.5f));
  if (level != level) return 0;
  return level < kLowestLevel    ? kLowestLevel
         : level > kHighestLevel ? kHighestLevel
                                 : static_cast<int32_t>(level);
}

// Of the 32 tokens of a group; takes the means from their values.
template <class Warp>
TERRACE_GPU void ChooseLevels(Warp& warp, const EncodeJob& job, const EncodeRows& rows,
                              EncodeState& state, uint32_t group) {
  const uint32_t k = rows.channels[0], v = rows.channels[1];
  const float* const weights[2] = {job.sections[0].level_weights, job.sections[1].level_weights};
  const bool levels = weights[0] != nullptr;
  warp.Each([&](uint32_t lane) {
    const uint32_t token = group * 32 + lane;
    if (token >= job.tokens) return;
    const Dots<Warp> of_k(rows.Values(0, 0) + token, k, weights[0], weights[1]);
    const Dots<Warp> of_v(rows.Values(1, 0) + token, v, levels ? weights[0] + k : nullptr,
                          levels ? weights[1] + k : nullptr);
    const bool raw = token < job.raw_below || token >= job.raw_from || !Finite(of_k.of_row) ||
                     !Finite(of_v.of_row);
    TERRACE_UNROLL
    for (uint32_t part = 0; part < 2; ++part) {
      int32_t level = 0;
      if (raw) {
        level = kRawLevel;
      } else if (levels) {
        level = LevelOf<Warp>(Warp::Add(of_k.of_weights[part], of_v.of_weights[part]),
                              weights[part] + k + v, of_k.of_row, of_v.of_row);
      }
      state.places[part].level[token] = static_cast<int8_t>(level);
      for (uint32_t c = 0; c < rows.channels[part]; ++c) {
        float& value = rows.Values(part, c)[token];
        value = Warp::Add(value, -job.sections[part].mean[c]);
      }
    }
  });
}

inline constexpr uint32_t kItemTokens = 8;

struct TokenSums {
  float of[kItemTokens];
};

// Of 32 coefficients and 8 tokens each.
TERRACE_GPU uint32_t QuantiseItems(const EncodeJob& job, uint32_t part) {
  const ColumnShape& shape = job.sections[part].shape;
  const uint32_t block = shape.ScratchBlock(), blocks = shape.heads * shape.dim / block;
  return blocks * ((block + 31) / 32) * ((job.tokens + kItemTokens - 1) / kItemTokens);
}

template <class Warp>
TERRACE_GPU void Quantise(Warp& warp, const EncodeJob& job, const EncodeRows& rows,
                          EncodeState& state, uint32_t part, uint32_t item) {
  const GpuSection& section = job.sections[part];
  const uint32_t block = section.shape.ScratchBlock(), runs = (block + 31) / 32;
  const uint32_t token_items = (job.tokens + kItemTokens - 1) / kItemTokens;
  const uint32_t first_token = item % token_items * kItemTokens, at = item / token_items;
  const uint32_t first = at / runs * block, first_column = at % runs * 32;
  const bool mixed = section.shape.block != 1;
  typename Warp::template Lanes<TokenSums> sums;
  warp.Each([&](uint32_t lane) {
    const uint32_t column = first_column + lane;
    sums[lane] = {};
    if (column >= block) return;
    const float* values = rows.Values(part, first) + first_token;
    if (!mixed) {
      TERRACE_UNROLL
      for (uint32_t t = 0; t < kItemTokens; ++t) {
        sums[lane].of[t] =
            Warp::Divide(values[column * kTilePlaces + t], section.row_scale[column]);
      }
      return;
    }
    const float* inverse = section.inverse + size_t{first} * block + column;
    for (uint32_t j = 0; j < block; ++j, inverse += block, values += kTilePlaces) {
      TERRACE_UNROLL
      for (uint32_t t = 0; t < kItemTokens; ++t) {
        sums[lane].of[t] = Warp::Fma(*inverse, values[t], sums[lane].of[t]);
      }
    }
  });
  TERRACE_UNROLL
  for (uint32_t t = 0; t < kItemTokens; ++t) {
    const uint32_t token = first_token + t;
    if (token >= job.tokens) continue;
    const float per_step = PowerOf16th(4 * state.places[part].level[token] - job.lambda16);
    const uint32_t magnitude = warp.Sum([&](uint32_t lane) -> uint32_t {
      if (first_column + lane >= block) return 0;
      const float q = Warp::RoundToEven(Warp::Mul(sums[lane].of[t], per_step));
      const bool fits = q >= -32767.0f && q <= 32767.0f;  // not of a NaN
      const int32_t value = fits ? static_cast<int32_t>(q) : 0;
      if (!fits) state.unfit[part][token] = 1;
      rows.Quantised(part, first + first_column + lane)[token] = static_cast<int16_t>(value);
      return static_cast<uint32_t>(value < 0 ? -value : value);
    });
    warp.Each([&](uint32_t lane) {
      if (lane == 0 && mixed) Warp::AtomicAdd(&state.magnitude[part][token], magnitude);
    });
  }
}

// Tokens whose coefficients do not fit, or could make a decoder's sums wrap, become raw: to be
// done by one warp once everything is quantised.
template <class Warp>
TERRACE_GPU void KeepUnfit(Warp& warp, uint32_t tokens, EncodeState& state, uint32_t part) {
  warp.Each([&](uint32_t lane) {
    for (uint32_t t = lane; t < tokens; t += 32) {
      const bool wraps = state.magnitude[part][t] >= 65536;  // times 32768: 2^31
      if (wraps || state.unfit[part][t] != 0) state.places[part].level[t] = kRawLevel;
    }
  });
}

}  // namespace terrace::kernels
