#include "codec/profile_codec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "codec/kv_rows.h"
#include "codec/profile_coder.h"
#include "codec/section_writer.h"
#include "config/text.h"

namespace terrace::codec {
namespace {

constexpr uint32_t kTogether = 4;  // tiles whose streams are decoded in lockstep

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

class ProfileDecoder final : public SectionDecoder {
 public:
  ProfileDecoder(const ChunkHeader& header, std::shared_ptr<const Profile> profile)
      : header_(header), profile_(std::move(profile)), turns_(TurnsOf(*profile_, header.shape)) {}
  absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const override;

 private:
  absl::Status Tiles(uint32_t section, std::span<const std::span<const uint8_t>> tiles,
                     uint32_t first, uint8_t* out) const;
  void WriteTile(uint32_t section, uint32_t tile, TileDecoder& decoder, uint8_t* out) const;

  const ChunkHeader header_;
  const std::shared_ptr<const Profile> profile_;
  const std::vector<kernels::Turn> turns_;  // of every position, when keys are rotated
};

absl::Status ProfileDecoder::Decode(const SectionTiles& tiles, uint8_t* out) const {
  const uint32_t whole = header_.shape.tokens / kTileTokens;
  for (uint32_t first = 0; first < header_.shape.Tiles();) {
    const uint32_t count = first < whole ? std::min(kTogether, whole - first) : 1;
    std::array<std::span<const uint8_t>, kTogether> some;
    for (uint32_t i = 0; i < count; ++i) {
      const auto tile = tiles.At(first + i);
      if (!tile.ok()) return tile.status();
      some[i] = *tile;
    }
    if (absl::Status status = Tiles(tiles.section(), {some.data(), count}, first, out);
        !status.ok()) {
      return status;
    }
    first += count;
  }
  return absl::OkStatus();
}

// Tiles of one shape, the first of which is `first`.
absl::Status ProfileDecoder::Tiles(uint32_t section,
                                   std::span<const std::span<const uint8_t>> tiles, uint32_t first,
                                   uint8_t* out) const {
  const KvShape& shape = header_.shape;
  std::array<TileDecoder, kTogether> decoders;
  std::array<kernels::RansStream, kTogether> streams;
  for (uint32_t i = 0; i < tiles.size(); ++i) {
    if (absl::Status status =
            decoders[i].Start(*profile_, section, header_.lambda16, shape.TileTokens(first + i),
                              DtypeBytes(shape.dtype), tiles[i]);
        !status.ok()) {
      return InTile(section, first + i, status);
    }
    streams[i] = *decoders[i].stream();
  }
  kernels::RansDecode(profile_->tables(), decoders[0].shape(), {streams.data(), tiles.size()});
  for (uint32_t i = 0; i < tiles.size(); ++i) {
    decoders[i].stream()->ok = streams[i].ok;
    if (absl::Status status = decoders[i].Finish(); !status.ok()) {
      return InTile(section, first + i, status);
    }
    WriteTile(section, first + i, decoders[i], out);
  }
  return absl::OkStatus();
}

void ProfileDecoder::WriteTile(uint32_t section, uint32_t tile, TileDecoder& decoder,
                               uint8_t* out) const {
  const KvShape& shape = header_.shape;
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

absl::StatusOr<std::vector<uint8_t>> EncodeWithProfile(const EncodeRequest& request) {
  if (request.profile == nullptr)
    return absl::InvalidArgumentError("codec profile needs a profile");
  return request.profile->Encode(request.shape, request.lambda16, request.raw_head,
                                 request.raw_tail, request.sections);
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenProfile(const DecodeSource& source) {
  const ChunkHeader& header = source.chunk.header;
  const std::shared_ptr<const Profile>& profile = source.profile;
  if (profile == nullptr || profile->hash() != header.profile) {
    return absl::FailedPreconditionError("the chunk was encoded with another profile");
  }
  if (absl::Status status = profile->CheckShape(header.shape); !status.ok()) return status;
  if (!HasRows(header.shape.dtype)) {
    return absl::DataLossError(
        absl::StrCat("encoded with a profile, from ", Sv(DtypeName(header.shape.dtype))));
  }
  return std::make_unique<const ProfileDecoder>(header, profile);
}

}  // namespace terrace::codec
