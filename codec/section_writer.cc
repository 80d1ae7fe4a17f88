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

namespace {

// The sections, each layer at a multiple of 64, and where they are.
std::vector<SectionPlace> AppendSections(const std::vector<SectionWriter>& sections,
                                         std::vector<uint8_t>* container) {
  std::vector<SectionPlace> places;
  for (const SectionWriter& section : sections) {
    if (places.size() % 2 == 0) container->resize(AlignUp(container->size(), kPartAlignment));
    places.push_back(
        {container->size(), static_cast<uint32_t>(section.bytes().size()), section.TableCrc()});
    container->insert(container->end(), section.bytes().begin(), section.bytes().end());
  }
  return places;
}

}  // namespace

std::vector<uint8_t> Assemble(const ChunkHeader& header, const std::vector<SectionWriter>& sections,
                              std::span<const uint8_t> tables,
                              const std::vector<SectionWriter>& refined) {
  size_t bytes = HeaderBytes(header.shape) + tables.size() + kPlaceBytes * refined.size();
  for (const SectionWriter& section : sections) bytes += section.bytes().size() + kPartAlignment;
  for (const SectionWriter& section : refined) bytes += section.bytes().size() + kPartAlignment;
  std::vector<uint8_t> container;
  container.reserve(bytes);
  container.resize(HeaderBytes(header.shape));
  Extras extras;
  if (!tables.empty()) {
    extras.tables = {container.size(), static_cast<uint32_t>(tables.size()),
                     kernels::Crc32c(tables.data(), tables.size())};
    container.insert(container.end(), tables.begin(), tables.end());
  }
  const std::vector<SectionPlace> places = AppendSections(sections, &container);
  if (!refined.empty()) {
    extras.refinement = {container.size(), static_cast<uint32_t>(kPlaceBytes * refined.size()), 0};
    container.resize(container.size() + extras.refinement.bytes);
    const std::vector<SectionPlace> refined_places = AppendSections(refined, &container);
    uint8_t* const directory = container.data() + extras.refinement.offset;
    WritePlaces(refined_places, directory);
    extras.refinement.crc = kernels::Crc32c(directory, extras.refinement.bytes);
  }
  WriteHeader(header, extras, places, container.data());
  return container;
}

}  // namespace terrace::codec
