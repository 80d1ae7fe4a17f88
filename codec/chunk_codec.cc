#include "codec/chunk_codec.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "codec/kv_rows.h"
#include "codec/profile_coder.h"
#include "config/text.h"
#include "kernels/checksum.h"

namespace terrace::codec {
namespace {

constexpr uint32_t kTogether = 4;  // tiles whose streams are decoded in lockstep

// A section's tiles as they are made, then its bytes: the tile table and the tiles.
class SectionWriter {
 public:
  explicit SectionWriter(uint32_t tiles) { bytes_.resize(tiles * sizeof(TilePlace)); }
  std::vector<uint8_t>* Begin() {
    start_ = bytes_.size();
    return &bytes_;
  }
  void End() {
    const TilePlace place{static_cast<uint32_t>(bytes_.size() - start_),
                          kernels::Crc32c(bytes_.data() + start_, bytes_.size() - start_)};
    std::memcpy(bytes_.data() + sizeof place * tile_++, &place, sizeof place);
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  uint32_t TableCrc() const { return kernels::Crc32c(bytes_.data(), tile_ * sizeof(TilePlace)); }

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;
  size_t tile_ = 0;
};

std::vector<uint8_t> Assemble(const ChunkHeader& header,
                              const std::vector<SectionWriter>& sections) {
  std::vector<uint8_t> container(HeaderBytes(header.shape));
  std::vector<SectionPlace> places;
  for (const SectionWriter& section : sections) {
    places.push_back(
        {container.size(), static_cast<uint32_t>(section.bytes().size()), section.TableCrc()});
    container.insert(container.end(), section.bytes().begin(), section.bytes().end());
  }
  WriteHeader(header, places, container.data());
  return container;
}

// What every position turns by.
std::vector<kernels::Turn> TurnsOf(const Profile& profile, const KvShape& shape) {
  const size_t pairs = profile.frequencies().size();
  std::vector<kernels::Turn> turns(shape.tokens * pairs);
  kernels::FillTurns(profile.frequencies().data(), pairs, shape.position, shape.tokens,
                     turns.data());
  return turns;
}

void RotateRow(const Profile& profile, const kernels::Turn* turns, bool back, float* row) {
  kernels::Rotate(row, profile.heads(), profile.k_dim(), profile.rotary_dim(), profile.pairing(),
                  turns, back);
}

// Both sections of a layer's tile, as rows.
struct LayerRows {
  std::vector<float> values[2];
  std::vector<uint8_t> source[2];
};

LayerRows ReadLayer(const Profile& profile, const KvShape& shape, uint32_t layer, uint32_t tile,
                    const std::vector<kernels::Turn>& turns,
                    std::span<const uint8_t* const> sections) {
  LayerRows rows;
  const uint32_t tokens = shape.TileTokens(tile), first = tile * kTileTokens;
  for (uint32_t part = 0; part < 2; ++part) {
    const uint32_t s = 2 * layer + part, channels = shape.Channels(s);
    const size_t token_bytes = size_t{channels} * DtypeBytes(shape.dtype);
    rows.values[part].resize(size_t{tokens} * channels);
    rows.source[part].resize(tokens * token_bytes);
    for (uint32_t t = 0; t < tokens; ++t) {
      float* row = rows.values[part].data() + size_t{t} * channels;
      ReadRow(shape, s, sections[s], first + t, row);
      ReadRawRow(shape, s, sections[s], first + t, rows.source[part].data() + t * token_bytes);
      if (part == 0)
        RotateRow(profile, turns.data() + (first + t) * profile.frequencies().size(), true, row);
    }
  }
  return rows;
}

absl::Status InSection(uint32_t section, uint32_t tile, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("section ", section, ", tile ", tile, ": ", status.message()));
}

absl::Status DecodeRaw(const KvShape& shape, uint32_t section,
                       const std::vector<std::span<const uint8_t>>& tiles, uint8_t* out) {
  const size_t token_bytes = size_t{shape.Channels(section)} * DtypeBytes(shape.dtype);
  for (uint32_t t = 0; t < tiles.size(); ++t) {
    if (tiles[t].size() != shape.TileTokens(t) * token_bytes) {
      return InSection(section, t, absl::DataLossError("not as long as its tokens"));
    }
    for (uint32_t i = 0; i < shape.TileTokens(t); ++i) {
      WriteRawRow(shape, section, tiles[t].data() + i * token_bytes, t * kTileTokens + i, out);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Encoder>> Encoder::Make(
    std::shared_ptr<const Profile> profile) {
  std::shared_ptr<Encoder> encoder(new Encoder);
  for (uint32_t s = 0; s < 2 * profile->layers(); ++s) {
    absl::StatusOr<std::vector<float>> inverse = InverseTransform(profile->section(s));
    if (!inverse.ok()) return inverse.status();
    encoder->inverses_.push_back(*std::move(inverse));
  }
  encoder->profile_ = std::move(profile);
  return std::shared_ptr<const Encoder>(std::move(encoder));
}

absl::StatusOr<std::vector<uint8_t>> Encoder::Encode(
    const KvShape& shape, int32_t lambda16, uint32_t raw_head, uint32_t raw_tail,
    std::span<const uint8_t* const> sections) const {
  if (absl::Status status = profile_->CheckShape(shape); !status.ok()) return status;
  if (!HasRows(shape.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("dtype ", Sv(DtypeName(shape.dtype)),
                                                   ": must be float32, float16 or bfloat16"));
  }
  if (lambda16 < -kMaxLambda16 || lambda16 > kMaxLambda16) {
    return absl::InvalidArgumentError(
        absl::StrCat("lambda16 must be -", kMaxLambda16, " .. ", kMaxLambda16));
  }
  std::vector<SectionWriter> writers(shape.Sections(), SectionWriter(shape.Tiles()));
  const std::vector<kernels::Turn> turns = TurnsOf(*profile_, shape);
  for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
    const uint32_t tokens = shape.TileTokens(tile);
    std::array<bool, kTileTokens> raw;
    for (uint32_t t = 0; t < tokens; ++t) {
      const uint32_t token = tile * kTileTokens + t;
      raw[t] = token < raw_head || shape.tokens - token <= raw_tail;
    }
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      const LayerRows rows = ReadLayer(*profile_, shape, layer, tile, turns, sections);
      const LayerTile both{tokens, rows.values[0].data(), rows.values[1].data(), raw.data()};
      for (uint32_t part = 0; part < 2; ++part) {
        const uint32_t s = 2 * layer + part;
        std::array<int8_t, kTileTokens> levels;
        ChooseLevels(*profile_, s, both, levels.data());
        const EncodeInput input{&profile_->tables(),      tokens,
                                rows.values[part].data(), rows.source[part].data(),
                                DtypeBytes(shape.dtype),  levels.data()};
        EncodeTile(profile_->section(s), inverses_[s], lambda16, input, writers[s].Begin());
        writers[s].End();
      }
    }
  }
  const ChunkHeader header{CodecId::kProfile, shape,    raw_head,
                           raw_tail,          lambda16, profile_->hash()};
  return Assemble(header, writers);
}

std::vector<uint8_t> EncodeRaw(const KvShape& shape, std::span<const uint8_t* const> sections) {
  std::vector<SectionWriter> writers(shape.Sections(), SectionWriter(shape.Tiles()));
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    const size_t token_bytes = size_t{shape.Channels(s)} * DtypeBytes(shape.dtype);
    for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
      std::vector<uint8_t>* out = writers[s].Begin();
      for (uint32_t t = 0; t < shape.TileTokens(tile); ++t) {
        out->resize(out->size() + token_bytes);
        ReadRawRow(shape, s, sections[s], tile * kTileTokens + t,
                   out->data() + out->size() - token_bytes);
      }
      writers[s].End();
    }
  }
  return Assemble({.codec = CodecId::kRaw, .shape = shape}, writers);
}

absl::StatusOr<Decoder> Decoder::Make(std::span<const uint8_t> container,
                                      std::shared_ptr<const Profile> profile) {
  absl::StatusOr<ParsedChunk> chunk = ParseHeader(container);
  if (!chunk.ok()) return chunk.status();
  Decoder decoder;
  decoder.container_ = container;
  decoder.chunk_ = *std::move(chunk);
  if (decoder.header().codec == CodecId::kRaw) return decoder;
  const KvShape& shape = decoder.header().shape;
  if (profile == nullptr || profile->hash() != decoder.header().profile) {
    return absl::FailedPreconditionError("the chunk was encoded with another profile");
  }
  if (absl::Status status = profile->CheckShape(shape); !status.ok()) return status;
  if (!HasRows(shape.dtype)) {
    return absl::DataLossError(
        absl::StrCat("encoded with a profile, from ", Sv(DtypeName(shape.dtype))));
  }
  decoder.turns_ = TurnsOf(*profile, shape);
  decoder.profile_ = std::move(profile);
  return decoder;
}

absl::Status Decoder::Section(uint32_t section, uint8_t* out) const {
  const KvShape& shape = header().shape;
  const auto tiles = TilesOf(container_, chunk_, section);
  if (!tiles.ok()) return tiles.status();
  if (header().codec == CodecId::kRaw) return DecodeRaw(shape, section, *tiles, out);
  const uint32_t whole = shape.tokens / kTileTokens;
  for (uint32_t first = 0; first < tiles->size();) {
    const uint32_t count = first < whole ? std::min(kTogether, whole - first) : 1;
    const auto some = std::span(*tiles).subspan(first, count);
    if (absl::Status status = Tiles(section, some, first, out); !status.ok()) return status;
    first += count;
  }
  return absl::OkStatus();
}

// Tiles of one shape, the first of which is `first`.
absl::Status Decoder::Tiles(uint32_t section, std::span<const std::span<const uint8_t>> tiles,
                            uint32_t first, uint8_t* out) const {
  const KvShape& shape = header().shape;
  std::array<TileDecoder, kTogether> decoders;
  std::array<kernels::RansStream, kTogether> streams;
  for (uint32_t i = 0; i < tiles.size(); ++i) {
    if (absl::Status status =
            decoders[i].Start(*profile_, section, header().lambda16, shape.TileTokens(first + i),
                              DtypeBytes(shape.dtype), tiles[i]);
        !status.ok()) {
      return InSection(section, first + i, status);
    }
    streams[i] = *decoders[i].stream();
  }
  kernels::RansDecode(profile_->tables(), decoders[0].shape(), {streams.data(), tiles.size()});
  for (uint32_t i = 0; i < tiles.size(); ++i) {
    decoders[i].stream()->ok = streams[i].ok;
    if (absl::Status status = decoders[i].Finish(); !status.ok()) {
      return InSection(section, first + i, status);
    }
    WriteTile(section, first + i, decoders[i], out);
  }
  return absl::OkStatus();
}

void Decoder::WriteTile(uint32_t section, uint32_t tile, TileDecoder& decoder, uint8_t* out) const {
  const KvShape& shape = header().shape;
  const uint32_t channels = shape.Channels(section), tokens = shape.TileTokens(tile);
  std::vector<float> rows(size_t{TileDecoder::kBatch} * channels);
  for (uint32_t t = 0; t < tokens; ++t) {
    const uint32_t in_batch = t % TileDecoder::kBatch, token = tile * kTileTokens + t;
    if (in_batch == 0) decoder.Tokens(t, std::min(TileDecoder::kBatch, tokens - t), rows.data());
    if (const uint8_t* raw = decoder.RawToken(t)) {
      WriteRawRow(shape, section, raw, token, out);
      continue;
    }
    float* row = rows.data() + size_t{in_batch} * channels;
    if (section % 2 == 0) {
      RotateRow(*profile_, turns_.data() + token * profile_->frequencies().size(), false, row);
    }
    WriteRow(shape, section, row, token, out);
  }
}

}  // namespace terrace::codec
