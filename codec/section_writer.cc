#include "codec/section_writer.h"

#include <cstring>

#include "config/object_layout.h"
#include "kernels/checksum.h"

namespace terrace::codec {

void SectionWriter::End() {
  const TilePlace place{static_cast<uint32_t>(bytes_.size() - start_),
                        kernels::Crc32c(bytes_.data() + start_, bytes_.size() - start_)};
  std::memcpy(bytes_.data() + sizeof place * tile_++, &place, sizeof place);
}

uint32_t SectionWriter::TableCrc() const {
  return kernels::Crc32c(bytes_.data(), tile_ * sizeof(TilePlace));
}

std::vector<uint8_t> Assemble(const ChunkHeader& header, const std::vector<SectionWriter>& sections,
                              std::span<const uint8_t> tables) {
  size_t bytes = HeaderBytes(header.shape) + tables.size();
  for (const SectionWriter& section : sections) bytes += section.bytes().size() + kPartAlignment;
  std::vector<uint8_t> container;
  container.reserve(bytes);
  container.resize(HeaderBytes(header.shape));
  SectionPlace tables_place;
  if (!tables.empty()) {
    tables_place = {container.size(), static_cast<uint32_t>(tables.size()),
                    kernels::Crc32c(tables.data(), tables.size())};
    container.insert(container.end(), tables.begin(), tables.end());
  }
  std::vector<SectionPlace> places;
  for (const SectionWriter& section : sections) {
    if (places.size() % 2 == 0) container.resize(AlignUp(container.size(), kPartAlignment));
    places.push_back(
        {container.size(), static_cast<uint32_t>(section.bytes().size()), section.TableCrc()});
    container.insert(container.end(), section.bytes().begin(), section.bytes().end());
  }
  WriteHeader(header, tables_place, places, container.data());
  return container;
}

}  // namespace terrace::codec
