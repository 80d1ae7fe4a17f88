// From the coefficients of a tile in scratch to an engine's values: one warp makes the values of 16
// places in the columns of one piece (kernels/gpu_tile.h) with matrix instructions on bytes,
// dequantises, turns and stores them.
//
// The instruction, mma.m16n8k32 of the PTX ISA: sums[16][8] += a[16][32] b[32][8], modulo 2^32, of
// signed or unsigned bytes. Lane l holds a[l / 4 + 8 i][l % 4 * 4 + 16 h ..] in word i + 2 h,
// b[l % 4 * 4 + 16 h ..][l / 4] in word h, and sums[l / 4 + 8 i][l % 4 * 2 + e] in 2 i + e. With
// a = 256 a1 + a0 and b = 256 b1 + b0 the product is a0 b0 + 256 (a0 b1 + a1 b0 + 256 a1 b1); most
// coefficients fit a signed byte, and where all of a slab's do the first two are enough.
#pragma once

#include "kernels/float_format.h"
#include "kernels/gpu_tile.h"
#include "kernels/tile_places.cuh"
#include "kernels/warp.h"

namespace terrace::kernels {

inline constexpr uint32_t kItemPlaces = 16;

struct RowBytes {
  uint32_t word[4];
};
struct PieceSums {
  int32_t unit[8][4];   // by n-tile
  int32_t upper[8][4];  // in units of 256
};

// Those of the places from first_place on and one slab. `a` holds the coefficients' low bytes and
// their high bytes, `matrix` this slab of the piece.
template <bool kSmall, class Warp>
TERRACE_GPU void AddSlab(Warp& warp, typename Warp::template Lanes<RowBytes> (&a)[2],
                         const MatrixWords* matrix,
                         typename Warp::template Lanes<PieceSums>& sums) {
  TERRACE_UNROLL
  for (uint32_t tile = 0; tile < 8; ++tile) {
    typename Warp::template Lanes<MatrixWords> b;
    warp.Each([&](uint32_t lane) { b[lane] = Warp::LoadMatrix(matrix + tile * 32 + lane); });
    const auto b_low = [&](uint32_t lane) -> uint32_t(&)[2] { return b[lane].low; };
    const auto b_high = [&](uint32_t lane) -> uint32_t(&)[2] { return b[lane].high; };
    const auto unit = [&](uint32_t lane) -> int32_t(&)[4] { return sums[lane].unit[tile]; };
    const auto upper = [&](uint32_t lane) -> int32_t(&)[4] { return sums[lane].upper[tile]; };
    warp.template Multiply<kSmall, false>(a[0], b_low, unit);
    warp.template Multiply<kSmall, true>(a[0], b_high, upper);
    if constexpr (!kSmall) {
      warp.template Multiply<true, false>(a[1], b_low, upper);
      typename Warp::template Lanes<RowBytes> top;
      const auto top_sums = [&](uint32_t lane) -> int32_t(&)[4] {
        return reinterpret_cast<int32_t(&)[4]>(top[lane].word);
      };
      warp.Each([&](uint32_t lane) { top[lane] = {}; });
      warp.template Multiply<true, true>(a[1], b_high, top_sums);
      warp.Each([&](uint32_t lane) {
        TERRACE_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
          int32_t& sum = sums[lane].upper[tile][i];
          sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + (top[lane].word[i] << 8));
        }
      });
    }
  }
}

// The products of the coefficients with the piece's columns of the transform.
template <class Warp>
TERRACE_GPU void TransformPiece(Warp& warp, const GpuSection& section, uint32_t piece,
                                uint32_t first_place, const uint32_t* scratch,
                                typename Warp::template Lanes<PieceSums>& sums) {
  const uint32_t slabs = section.shape.ScratchRows() / kSlab;
  const uint32_t high_words = section.shape.ScratchCoefficients() / 4 * kTilePlaces;
  const uint32_t* rows = scratch + section.pieces[piece].block * slabs * (kSlab / 4) * kTilePlaces;
  const MatrixWords* matrix = section.matrix + size_t{piece} * slabs * 256;
  warp.Each([&](uint32_t lane) { sums[lane] = {}; });
  for (uint32_t slab = 0; slab < slabs; ++slab) {
    typename Warp::template Lanes<RowBytes> a[2];
    const uint32_t large = warp.Ballot([&](uint32_t lane) {
      uint32_t differs = 0;
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t k4 = lane % 4 + i / 2 * 4, place = first_place + lane / 4 + i % 2 * 8;
        const uint32_t low = rows[k4 * kTilePlaces + place];
        const uint32_t high = rows[k4 * kTilePlaces + place + high_words];
        a[0][lane].word[i] = low;
        a[1][lane].word[i] = high;
        differs |= high ^ (low >> 7 & 0x01010101) * 0xff;
      }
      return differs != 0;
    });
    if (large == 0) {
      AddSlab<true>(warp, a, matrix, sums);
    } else {
      AddSlab<false>(warp, a, matrix, sums);
    }
    rows += kSlab / 4 * kTilePlaces;
    matrix += 256;
  }
}

// The coefficient itself, of a section without a transform.
TERRACE_GPU int32_t CoefficientAt(const uint32_t* scratch, uint32_t high_words, uint32_t channel,
                                  uint32_t place) {
  const uint32_t word = channel / 4 * kTilePlaces + place, shift = channel % 4 * 8;
  const uint32_t value =
      (scratch[word] >> shift & 0xff) | (scratch[word + high_words] >> shift & 0xff) << 8;
  return static_cast<int16_t>(value);
}

// Turns a lane's 8 columns of each run, from `column` of the run on.
template <class Warp>
TERRACE_GPU void TurnColumns(const ColumnPiece& piece, RopePairing pairing, uint32_t column,
                             const Turn* turns, float (&x)[2][8]) {
  const auto turn = [](const Turn& by, float& first, float& second) {
    const float a = first, b = second;
    first = Warp::Fma(a, by.cosine, -Warp::Mul(b, by.sine));
    second = Warp::Fma(b, by.cosine, Warp::Mul(a, by.sine));
  };
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    if (pairing == RopePairing::kHalf) {
      if (column + i < piece.count[0]) turn(turns[piece.pair + column + i], x[0][i], x[1][i]);
    } else if (i % 2 == 0) {
      TERRACE_UNROLL
      for (uint32_t run = 0; run < 2; ++run) {
        if (column + i >= piece.count[run]) continue;
        turn(turns[(piece.first[run] + column + i) / 2], x[run][i], x[run][i + 1]);
      }
    }
  }
}

// `count` of 8 values.
template <class Warp>
TERRACE_GPU void StoreValues(ValueFormat format, const float (&x)[8], uint32_t count, uint8_t* to) {
  const bool aligned = (reinterpret_cast<uintptr_t>(to) & 15) == 0;
  uint32_t words[8];
  if (format == ValueFormat::kF32) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 8; ++i) words[i] = std::bit_cast<uint32_t>(x[i]);
  } else {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 8; i += 2) {
      const bool bf16 = format == ValueFormat::kBf16;
      words[i / 2] = (bf16 ? Bf16OfFloat(x[i]) : F16OfFloat(x[i])) |
                     (bf16 ? Bf16OfFloat(x[i + 1]) : F16OfFloat(x[i + 1])) << 16;
    }
  }
  if (count == 8 && aligned) {
    Warp::Store4(to, words);
    if (format == ValueFormat::kF32) Warp::Store4(to + 16, words + 4);
    return;
  }
  const uint32_t bytes = BytesOf(format), per_word = 4 / bytes;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    if (i >= count) continue;
    const uint32_t word = per_word == 1 ? words[i] : words[i / 2] >> i % 2 * 16;
    for (uint32_t b = 0; b < bytes; ++b) to[i * bytes + b] = static_cast<uint8_t>(word >> 8 * b);
  }
}

// What a warp does at a time: 16 places of a piece, or the copy of a raw token.
TERRACE_GPU uint32_t ItemsOf(const DecodeJob& job, const TilePlaces& places) {
  const uint32_t place_tiles = (job.tokens + kItemPlaces - 1) / kItemPlaces;
  return place_tiles * job.section->piece_count + places.raw;
}

template <class Warp>
TERRACE_GPU void CopyRawToken(Warp& warp, const DecodeJob& job, uint32_t value_bytes,
                              const TilePlaces& places, uint32_t place) {
  const ColumnShape& shape = job.section->shape;
  const uint32_t channels = shape.heads * shape.dim;
  const uint8_t* from = job.tile + places.raw_at + size_t{place} * channels * value_bytes;
  uint8_t* const to = TokenAt(job.to, job.first_token + places.token[place]);
  warp.Each([&](uint32_t lane) {
    for (uint32_t c = lane; c < channels; c += 32) {
      uint8_t* const value = to + c / shape.dim * job.to.head_stride + c % shape.dim * value_bytes;
      for (uint32_t b = 0; b < value_bytes; ++b) value[b] = from[c * value_bytes + b];
    }
  });
}

template <class Warp>
TERRACE_GPU void WriteItem(Warp& warp, const DecodeJob& job, ValueFormat format,
                           const TilePlaces& places, const uint32_t* scratch, uint32_t item) {
  const GpuSection& section = *job.section;
  const ColumnShape& shape = section.shape;
  const uint32_t place_tiles = (job.tokens + kItemPlaces - 1) / kItemPlaces;
  if (item >= place_tiles * section.piece_count) {
    CopyRawToken(warp, job, BytesOf(format), places, item - place_tiles * section.piece_count);
    return;
  }
  const uint32_t piece_id = item / place_tiles, first_place = item % place_tiles * kItemPlaces;
  const ColumnPiece piece = section.pieces[piece_id];
  const uint32_t high_words = shape.ScratchCoefficients() / 4 * kTilePlaces;
  const bool mixed = shape.block != 1;
  warp.Sync();  // matrix instructions want all lanes together; those of the item before may differ
  typename Warp::template Lanes<PieceSums> sums;
  if (mixed) TransformPiece(warp, section, piece_id, first_place, scratch, sums);
  warp.Each([&](uint32_t lane) {
    const uint32_t column = lane % 4 * 8;
    TERRACE_UNROLL
    for (uint32_t row = 0; row < 2; ++row) {
      const uint32_t place = first_place + lane / 4 + row * 8;
      if (place >= job.tokens || place < places.raw) continue;
      float x[2][8] = {};
      TERRACE_UNROLL
      for (uint32_t at = 0; at < 16; ++at) {
        const uint32_t run = at / 8, i = at % 8;
        if (column + i >= piece.count[run]) continue;
        const uint32_t channel = piece.head * shape.dim + piece.first[run] + column + i;
        const uint32_t tile = run * 4 + i / 2, of_sum = row * 2 + i % 2;
        const int32_t a =
            mixed
                ? static_cast<int32_t>(static_cast<uint32_t>(sums[lane].unit[tile][of_sum]) +
                                       (static_cast<uint32_t>(sums[lane].upper[tile][of_sum]) << 8))
                : CoefficientAt(scratch, high_words, channel, place);
        x[run][i] = Warp::Fma(static_cast<float>(a),
                              Warp::Mul(places.step[place], section.row_scale[channel]),
                              section.mean[channel]);
      }
      const uint32_t token = places.token[place];
      if (piece.turned) {
        TurnColumns<Warp>(piece, shape.pairing, column,
                          job.turns + size_t{token} * (shape.rotary_dim / 2), x);
      }
      uint8_t* const to =
          TokenAt(job.to, job.first_token + token) + piece.head * job.to.head_stride;
      TERRACE_UNROLL
      for (uint32_t run = 0; run < 2; ++run) {
        if (column >= piece.count[run]) continue;
        const uint32_t left = piece.count[run] - column;
        StoreValues<Warp>(format, x[run], left < 8 ? left : 8,
                          to + (piece.first[run] + column) * BytesOf(format));
      }
    }
  });
}

}  // namespace terrace::kernels
