// Sections as they are made, and the container of them. Any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/container.h"

namespace terrace::codec {

// A section's tiles one after the other, then its bytes: the tile table and the tiles.
class SectionWriter {
 public:
  // `expected`: bytes of all tiles, for speed alone.
  explicit SectionWriter(uint32_t tiles, size_t expected = 0) {
    bytes_.reserve(tiles * sizeof(TilePlace) + expected);
    bytes_.resize(tiles * sizeof(TilePlace));
  }
  // Append the next tile's bytes to the result, then End.
  std::vector<uint8_t>* Begin() {
    start_ = bytes_.size();
    return &bytes_;
  }
  void End();
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  uint32_t TableCrc() const;

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;
  size_t tile_ = 0;
};

// `tables`: what the codec keeps beside the sections. `refined`: their refinement, behind all else.
std::vector<uint8_t> Assemble(const ChunkHeader& header, const std::vector<SectionWriter>& sections,
                              std::span<const uint8_t> tables = {},
                              const std::vector<SectionWriter>& refined = {});

}  // namespace terrace::codec
