// One tile of codec 2. Stored form: docs/formats/chunk.md. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "codec/channel_tables.h"
#include "codec/kv_shape.h"
#include "kernels/rans.h"

namespace terrace::codec {

inline constexpr uint32_t kRawTile = 0, kCodedTile = 1;  // the first u32 of a tile

// What the tiles of one section have in common.
class ChannelPlan {
 public:
  ChannelPlan(const ChannelTables& tables, const KvShape& shape, uint32_t section);

  const ChannelTables& tables() const { return tables_; }
  const KvShape& shape() const { return shape_; }
  uint32_t section() const { return section_; }
  uint32_t channels() const { return static_cast<uint32_t>(cells_.size()); }
  const kernels::WordCells& cells(uint32_t channel) const { return cells_[channel]; }
  uint32_t kept_bits(uint32_t channel) const { return kept_bits_[channel]; }
  // Bytes of kept bits of a round of every channel.
  size_t plane_bytes() const { return plane_bytes_; }
  kernels::RansShape ShapeOf(uint32_t tokens) const;
  std::vector<uint8_t> ScheduleOf(uint32_t groups) const;

 private:
  const ChannelTables& tables_;
  const KvShape shape_;
  const uint32_t section_;
  std::vector<kernels::WordCells> cells_;
  std::vector<uint32_t> kept_bits_;
  size_t plane_bytes_ = 0;
};

// Appends a coded tile. words: [channel][stride], those of the tile's tokens; low: as they are
// stored.
void AppendChannelTile(const ChannelPlan& plan, uint32_t tokens, const uint16_t* words,
                       size_t stride, std::span<const uint8_t> low, std::vector<uint8_t>* out);

// One tile on its way back, so that the streams of several can be decoded in lockstep: Start, then
// kernels::RansDecode of stream(), then Finish.
class ChannelTileDecoder {
 public:
  // `bytes` after the form. DataLoss for lengths that no encoder makes.
  absl::Status Start(const ChannelPlan& plan, uint32_t tokens, std::span<const uint8_t> bytes);
  kernels::RansStream* stream() { return &stream_; }
  // The tile's words, [token][channel]. DataLoss when the stream, or an escape, is wrong.
  absl::Status Finish(const ChannelPlan& plan, uint16_t* words);
  // [token][channel], LowBytes of each.
  const uint8_t* low() const { return low_; }

 private:
  uint32_t tokens_ = 0;
  std::vector<uint8_t> schedule_, symbols_;
  kernels::RansStream stream_;
  const uint8_t* planes_ = nullptr;
  const uint8_t* low_ = nullptr;
  std::span<const uint8_t> escapes_;
};

}  // namespace terrace::codec
