#include "codec/chunk_codec.h"

namespace terrace::codec {

absl::StatusOr<std::vector<uint8_t>> Encode(std::string_view codec, const EncodeRequest& request) {
  const auto entry = FindCodec(codec);
  if (!entry.ok()) return entry.status();
  if (absl::Status status = CheckShape(request.shape); !status.ok()) return status;
  return (*entry)->encode(request);
}

absl::StatusOr<Decoder> Decoder::Make(std::span<const uint8_t> container,
                                      std::shared_ptr<const Profile> profile) {
  absl::StatusOr<ParsedChunk> chunk = ParseHeader(container);
  if (!chunk.ok()) return chunk.status();
  const auto entry = FindCodec(chunk->header.codec);
  if (!entry.ok()) return entry.status();
  auto sections = (*entry)->open({*chunk, container, profile});
  if (!sections.ok()) return sections.status();
  Decoder decoder;
  decoder.container_ = container;
  decoder.chunk_ = *std::move(chunk);
  decoder.sections_ = *std::move(sections);
  return decoder;
}

absl::Status Decoder::Section(uint32_t section, uint8_t* out) const {
  const auto tiles = SectionTiles::Find(container_, chunk_, section);
  if (!tiles.ok()) return tiles.status();
  return sections_->Decode(*tiles, out);
}

}  // namespace terrace::codec
