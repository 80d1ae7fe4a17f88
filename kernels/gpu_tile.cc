#include "kernels/gpu_tile.h"

#include <algorithm>

#include "kernels/tile_math.h"

namespace terrace::kernels {
namespace {

// Calls piece(ColumnPiece) for each piece of one head.
template <typename Piece>
void ForEachPiece(const ColumnShape& shape, Piece piece) {
  const bool halves = shape.pairing == RopePairing::kHalf && shape.rotary_dim != 0;
  const auto runs = [&](uint32_t begin, uint32_t end, bool turned) {
    for (uint32_t first = begin; first < end; first += 2 * kPieceRun) {
      ColumnPiece p;
      for (uint32_t run = 0; run < 2; ++run) {
        const uint32_t at = std::min(end, first + run * kPieceRun);
        p.first[run] = static_cast<uint16_t>(at);
        p.count[run] = static_cast<uint8_t>(std::min(end - at, kPieceRun));
      }
      p.turned = turned;
      piece(p);
    }
  };
  const uint32_t half = shape.rotary_dim / 2;
  for (uint32_t first = 0; halves && first < half; first += kPieceRun) {
    ColumnPiece p;
    p.first[0] = static_cast<uint16_t>(first);
    p.first[1] = static_cast<uint16_t>(half + first);
    p.count[0] = p.count[1] = static_cast<uint8_t>(std::min(half - first, kPieceRun));
    p.turned = true;
    p.pair = static_cast<uint16_t>(first);
    piece(p);
  }
  if (!halves) runs(0, shape.rotary_dim, true);
  runs(shape.rotary_dim, shape.dim, false);
}

// Four coefficients from `k` on of a block's column, as bytes.
uint32_t BytesOfColumn(const int16_t* block_pairs, uint32_t block, uint32_t column, uint32_t k,
                       uint32_t shift) {
  uint32_t word = 0;
  for (uint32_t i = 0; i < 4 && k + i < block; ++i) {
    const int16_t value = block_pairs[PairedIndex(block, k + i, column)];
    word |= (static_cast<uint32_t>(value) >> shift & 0xff) << 8 * i;
  }
  return word;
}

}  // namespace

size_t PieceCount(const ColumnShape& shape) {
  size_t count = 0;
  ForEachPiece(shape, [&](const ColumnPiece&) { ++count; });
  return count * shape.heads;
}

void CutColumns(const ColumnShape& shape, ColumnPiece* pieces) {
  for (uint32_t head = 0; head < shape.heads; ++head) {
    ForEachPiece(shape, [&](ColumnPiece piece) {
      piece.head = static_cast<uint16_t>(head);
      piece.block = static_cast<uint16_t>(head * shape.dim / shape.ScratchBlock());
      *pieces++ = piece;
    });
  }
}

size_t PackedMatrixSize(const ColumnShape& shape) {
  return shape.block == 1 ? 0 : PieceCount(shape) * (shape.ScratchRows() / kSlab) * 8 * 32;
}

void PackMatrix(const ColumnShape& shape, const int16_t* pairs, const ColumnPiece* pieces,
                MatrixWords* out) {
  if (shape.block == 1) return;
  const size_t pairs_each = PairedSize(shape.block, shape.block);
  for (size_t p = 0; p < PieceCount(shape); ++p) {
    const ColumnPiece& piece = pieces[p];
    const uint32_t head_column = piece.head * shape.dim - piece.block * shape.block;
    for (uint32_t at = 0; at < shape.ScratchRows() / kSlab * 8 * 32; ++at, ++out) {
      const uint32_t slab = at / 256, tile = at / 32 % 8, lane = at % 32, run = tile / 4;
      const uint32_t column = ColumnOfRun(tile, lane / 4);
      *out = {};
      if (column >= piece.count[run]) continue;
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t k = slab * kSlab + half * 16 + lane % 4 * 4;
        const uint32_t j = head_column + piece.first[run] + column;
        out->low[half] = BytesOfColumn(pairs + piece.block * pairs_each, shape.block, j, k, 0);
        out->high[half] = BytesOfColumn(pairs + piece.block * pairs_each, shape.block, j, k, 8);
      }
    }
  }
}

void PackDecodeTables(const RansTables& bank, uint32_t entries[kGpuTables * kRansTotal]) {
  for (uint32_t t = 0; t < kGpuTables; ++t) {
    const RansTable& table = bank.tables[t];
    for (uint32_t slot = 0; slot < kRansTotal; ++slot) {
      const uint32_t symbol = table.slot_to_symbol[slot];
      *entries++ =
          (slot - table.start[symbol]) | (kRansTotal - table.gap[symbol]) << 8 | symbol << 24;
    }
  }
}

void PackEncodeTables(const RansTables& bank, EncodeSymbol symbols[kGpuTables * kRansSymbols]) {
  for (uint32_t t = 0; t < kGpuTables; ++t) {
    for (uint32_t s = 0; s < kRansSymbols; ++s, ++symbols) {
      const uint32_t frequency = kRansTotal - bank.tables[t].gap[s];
      *symbols = {static_cast<uint16_t>(frequency), bank.tables[t].start[s],
                  frequency == 0 ? 0 : 65536 / frequency};
    }
  }
}

}  // namespace terrace::kernels
