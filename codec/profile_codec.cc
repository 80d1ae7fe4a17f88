#include "codec/profile_codec.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "absl/strings/str_cat.h"
#include "codec/inverse_transform.h"
#include "codec/kv_rows.h"
#include "codec/position_turns.h"
#include "codec/refinement.h"
#include "codec/section_writer.h"
#include "codec/tile_decoder.h"
#include "codec/tile_encoder.h"
#include "config/text.h"
#include "kernels/checksum.h"
#include "kernels/value_rows.h"

namespace terrace::codec {
namespace {

// Encodes a layer: K and V together, for both say how precise a token must be.
class LayerEncoder {
 public:
  LayerEncoder(const Profile& profile, uint32_t layer, const PositionTurns& turns,
               const std::vector<float>* inverses, const EncodeRequest& request)
      : profile_(profile),
        shape_(request.shape),
        layer_(layer),
        turns_(turns),
        sections_(request.sections),
        raw_head_(request.raw_head),
        raw_tail_(request.raw_tail),
        refined_(request.refined) {
    const uint32_t together = std::min(kTogether, std::max(1u, shape_.tokens / kTileTokens));
    for (uint32_t part = 0; part < 2; ++part) {
      const uint32_t s = 2 * layer + part;
      rows_[part].resize(size_t{TileEncoder::kBatch} * shape_.Channels(s));
      for (uint32_t i = 0; i < together; ++i) {
        tiles_[part].emplace_back(profile, s, inverses[s], request.lambda16, refined_);
      }
    }
  }
  // The sections' writers, K and V; `refined` is not used without refinement.
  void Encode(SectionWriter* writers, SectionWriter* refined) {
    const uint32_t whole = shape_.tokens / kTileTokens;
    for (uint32_t first = 0, count; first < shape_.Tiles(); first += count) {
      count = first < whole ? std::min(kTogether, whole - first) : 1;  // of one shape
      for (uint32_t i = 0; i < count; ++i) Pack(first + i, i);
      for (uint32_t part = 0; part < 2; ++part) {
        Code(part, first, count, &writers[part]);
        if (refined_) CodeRefinement(part, count, &refined[part]);
      }
    }
  }

 private:
  static constexpr uint32_t kTogether = 4;  // tiles whose streams are coded in lockstep

  void Pack(uint32_t tile, uint32_t slot);
  void Code(uint32_t part, uint32_t first, uint32_t count, SectionWriter* writer);
  void CodeRefinement(uint32_t part, uint32_t count, SectionWriter* writer);

  const Profile& profile_;
  const KvShape& shape_;
  const uint32_t layer_;
  const PositionTurns& turns_;
  const std::span<const uint8_t* const> sections_;
  const uint32_t raw_head_, raw_tail_;
  const bool refined_;
  std::vector<float> rows_[2];  // of a batch of tokens
  std::vector<TileEncoder> tiles_[2];
};

void LayerEncoder::Pack(uint32_t tile, uint32_t slot) {
  const uint32_t tokens = shape_.TileTokens(tile);
  for (auto& tiles : tiles_) tiles[slot].Begin(tokens);
  for (uint32_t first = 0; first < tokens; first += TileEncoder::kBatch) {
    const uint32_t count = std::min(TileEncoder::kBatch, tokens - first);
    std::array<std::array<int8_t, TileEncoder::kBatch>, 2> levels;
    for (uint32_t t = 0; t < count; ++t) {
      const uint32_t token = tile * kTileTokens + first + t;
      float* rows[2];
      for (uint32_t part = 0; part < 2; ++part) {
        const uint32_t s = 2 * layer_ + part;
        rows[part] = rows_[part].data() + size_t{t} * shape_.Channels(s);
        ReadRow(shape_, s, sections_[s], token, rows[part]);
      }
      kernels::Rotate(rows[0], profile_.heads(), profile_.k_dim(), profile_.rotary_dim(),
                      profile_.pairing(), turns_.At(token), true);
      const TokenSums sums = SumToken(profile_, layer_, rows[0], rows[1]);
      const bool raw = token < raw_head_ || shape_.tokens - token <= raw_tail_;
      for (uint32_t part = 0; part < 2; ++part) {
        levels[part][t] =
            raw ? static_cast<int8_t>(kRawLevel) : LevelOf(profile_, 2 * layer_ + part, sums);
      }
    }
    for (uint32_t part = 0; part < 2; ++part) {
      tiles_[part][slot].Add(first, count, levels[part].data(), rows_[part].data());
    }
  }
  for (auto& tiles : tiles_) tiles[slot].Pack();
}

void LayerEncoder::Code(uint32_t part, uint32_t first, uint32_t count, SectionWriter* writer) {
  const uint32_t s = 2 * layer_ + part;
  std::array<kernels::RansSource, kTogether> sources;
  for (uint32_t i = 0; i < count; ++i) sources[i] = tiles_[part][i].Source();
  const bool coded =
      kernels::RansEncode(profile_.tables(), tiles_[part][0].shape(), {sources.data(), count});
  assert(coded);  // what a table cannot code was escaped
  (void)coded;
  const size_t token_bytes = size_t{shape_.Channels(s)} * DtypeBytes(shape_.dtype);
  for (uint32_t i = 0; i < count; ++i) {
    std::vector<uint8_t>* out = writer->Begin();
    tiles_[part][i].AppendTo(out, sources[i].size);
    for (uint32_t t = 0; t < shape_.TileTokens(first + i); ++t) {
      if (!tiles_[part][i].IsRaw(t)) continue;
      out->resize(out->size() + token_bytes);
      ReadRawRow(shape_, s, sections_[s], (first + i) * kTileTokens + t,
                 out->data() + out->size() - token_bytes);
    }
    writer->End();
  }
}

void LayerEncoder::CodeRefinement(uint32_t part, uint32_t count, SectionWriter* writer) {
  std::array<kernels::RansSource, kTogether> sources;
  for (uint32_t i = 0; i < count; ++i) sources[i] = tiles_[part][i].RefinedSource();
  const bool coded = kernels::RansEncode(RefinementTables(), tiles_[part][0].refined_shape(),
                                         {sources.data(), count});
  assert(coded);  // every table codes every digit
  (void)coded;
  for (uint32_t i = 0; i < count; ++i) {
    const auto stream = tiles_[part][i].RefinedStream(sources[i].size);
    std::vector<uint8_t>* out = writer->Begin();
    out->insert(out->end(), stream.begin(), stream.end());
    writer->End();
  }
}

class ProfileDecoder final : public SectionDecoder {
 public:
  ProfileDecoder(const DecodeSource& source, std::shared_ptr<const Profile> profile)
      : chunk_(source.chunk),
        container_(source.container),
        profile_(std::move(profile)),
        turns_(profile_->frequencies(), chunk_.header.shape) {}
  absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const override;

 private:
  SectionOutput OutputOf(uint32_t section, uint8_t* out) const;

  const ParsedChunk chunk_;
  const std::span<const uint8_t> container_;
  const std::shared_ptr<const Profile> profile_;
  const PositionTurns turns_;
};

SectionOutput ProfileDecoder::OutputOf(uint32_t section, uint8_t* out) const {
  const KvShape& shape = chunk_.header.shape;
  const size_t dim_bytes = size_t{shape.Dim(section)} * DtypeBytes(shape.dtype);
  const bool token_major = shape.order == KvOrder::kTokenMajor;
  SectionOutput output{out, shape.dtype, shape.heads, shape.Dim(section)};
  output.token_stride = token_major ? dim_bytes * shape.heads : dim_bytes;
  output.head_stride = token_major ? dim_bytes : dim_bytes * shape.tokens;
  output.stream = shape.SectionBytes(section) >= kernels::kStreamBytes;
  if (section % 2 == 0) {
    output.pairing = profile_->pairing();
    output.rotary_dim = profile_->rotary_dim();
    output.cosines = turns_.At(0).cosines;
    output.sines = turns_.At(0).sines;
  }
  return output;
}

absl::Status ProfileDecoder::Decode(const SectionTiles& tiles, uint8_t* out) const {
  const KvShape& shape = chunk_.header.shape;
  const uint32_t section = tiles.section(), whole = shape.tokens / kTileTokens;
  const auto finer = SectionTiles::FindRefined(container_, chunk_, section);
  if (!finer.ok()) return finer.status();
  TileDecoder decoder(*profile_, section, chunk_.header.lambda16, OutputOf(section, out));
  for (uint32_t first = 0, count; first < shape.Tiles(); first += count) {
    count = first < whole ? std::min(TileDecoder::kTogether, whole - first) : 1;  // of one shape
    std::array<std::span<const uint8_t>, TileDecoder::kTogether> some, refined;
    for (uint32_t i = 0; i < count; ++i) {
      const auto tile = tiles.At(first + i);
      if (!tile.ok()) return tile.status();
      some[i] = *tile;
      if (finer->empty()) continue;
      const auto digits = finer->At(first + i);
      if (!digits.ok()) return digits.status();
      refined[i] = *digits;
    }
    const absl::Status status = decoder.Decode(first, shape.TileTokens(first), {some.data(), count},
                                               {refined.data(), finer->empty() ? 0 : count});
    if (!status.ok()) return status;
  }
  kernels::StreamFence();
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
  return Encode({shape, sections, this, lambda16, raw_head, raw_tail});
}

absl::StatusOr<std::vector<uint8_t>> Encoder::Encode(const EncodeRequest& request) const {
  const KvShape& shape = request.shape;
  const int32_t lambda16 = request.lambda16;
  if (absl::Status status = profile_->CheckShape(shape); !status.ok()) return status;
  if (!HasRows(shape.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("dtype ", Sv(DtypeName(shape.dtype)),
                                                   ": must be float32, float16 or bfloat16"));
  }
  if (lambda16 < -kMaxLambda16 || lambda16 > kMaxLambda16) {
    return absl::InvalidArgumentError(
        absl::StrCat("lambda16 must be -", kMaxLambda16, " .. ", kMaxLambda16));
  }
  std::vector<SectionWriter> writers(shape.Sections(), SectionWriter(shape.Tiles())), refined;
  if (request.refined) refined = writers;
  const PositionTurns turns(profile_->frequencies(), shape);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    LayerEncoder(*profile_, layer, turns, inverses_.data(), request)
        .Encode(&writers[2 * layer], refined.data() + (request.refined ? 2 * layer : 0));
  }
  const ChunkHeader header{CodecId::kProfile, shape,    request.raw_head,
                           request.raw_tail,  lambda16, profile_->hash()};
  return Assemble(header, writers, request.embed, refined);
}

absl::StatusOr<std::vector<uint8_t>> EncodeWithProfile(const EncodeRequest& request) {
  if (request.profile == nullptr)
    return absl::InvalidArgumentError("codec profile needs a profile");
  return request.profile->Encode(request);
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenProfile(const DecodeSource& source) {
  const ChunkHeader& header = source.chunk.header;
  std::shared_ptr<const Profile> profile = source.profile;
  if (profile == nullptr && source.chunk.tables.bytes != 0) {
    const auto embedded = TablesOf(source.container, source.chunk);
    if (!embedded.ok()) return embedded.status();
    auto parsed = Profile::Parse(*embedded);
    if (!parsed.ok()) return parsed.status();
    profile = *std::move(parsed);
  }
  if (profile == nullptr || profile->hash() != header.profile) {
    return absl::FailedPreconditionError("the chunk was encoded with another profile");
  }
  if (absl::Status status = profile->CheckShape(header.shape); !status.ok()) return status;
  if (!HasRows(header.shape.dtype)) {
    return absl::DataLossError(
        absl::StrCat("encoded with a profile, from ", Sv(DtypeName(header.shape.dtype))));
  }
  return std::make_unique<const ProfileDecoder>(source, std::move(profile));
}

}  // namespace terrace::codec
