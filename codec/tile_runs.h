// Codecs that keep the order of a section: a tile is coded by itself, from its bytes as the section
// has them, which are one run in [tokens, heads, dim] and one a head in [heads, tokens, dim]. Any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

// Where a tile's bytes are in its section.
struct TileRuns {
  size_t first = 0;
  size_t runs = 0, run_bytes = 0, stride = 0;

  TileRuns(const KvShape& shape, uint32_t section, uint32_t tile);
  size_t bytes() const { return runs * run_bytes; }
  void Gather(const uint8_t* section, uint8_t* tile) const;
  void Scatter(const uint8_t* tile, uint8_t* section) const;
};

// A container whose tiles are what `append` makes of their bytes.
using AppendTile =
    std::function<absl::Status(const std::vector<uint8_t>& values, std::vector<uint8_t>* out)>;
absl::StatusOr<std::vector<uint8_t>> EncodeTiles(CodecId codec, const EncodeRequest& request,
                                                 const AppendTile& append);

// Decodes tile after tile.
class TiledDecoder : public SectionDecoder {
 public:
  explicit TiledDecoder(const KvShape& shape) : shape_(shape) {}
  absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const final;

 protected:
  // To its runs of the section at `out`. DataLoss saying what is wrong.
  virtual absl::Status DecodeTile(std::span<const uint8_t> bytes, const TileRuns& runs,
                                  uint8_t* out) const = 0;
  const KvShape shape_;
};

}  // namespace terrace::codec
