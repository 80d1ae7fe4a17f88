#include "codec/channel_codec.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "codec/channel_tile.h"
#include "codec/kv_rows.h"
#include "codec/section_writer.h"
#include "codec/value_words.h"

namespace terrace::codec {
namespace {

constexpr uint32_t kTogether = 4;  // tiles whose streams are decoded in lockstep
constexpr size_t kFormBytes = sizeof kRawTile;

// A section's words by channel, its low parts by token.
struct SectionWords {
  std::vector<uint16_t> words;
  std::vector<uint8_t> low;
};

SectionWords ReadWords(const KvShape& shape, uint32_t section, const uint8_t* bytes) {
  const uint32_t channels = shape.Channels(section);
  const size_t low_bytes = channels * LowBytes(shape.dtype);
  SectionWords of{std::vector<uint16_t>(size_t{channels} * shape.tokens),
                  std::vector<uint8_t>(low_bytes * shape.tokens)};
  std::vector<uint8_t> row(size_t{channels} * DtypeBytes(shape.dtype));
  std::vector<uint16_t> words(channels);
  for (uint32_t t = 0; t < shape.tokens; ++t) {
    ReadRawRow(shape, section, bytes, t, row.data());
    WordsOfValues(shape.dtype, row.data(), channels, words.data(), of.low.data() + t * low_bytes);
    for (uint32_t c = 0; c < channels; ++c) of.words[size_t{c} * shape.tokens + t] = words[c];
  }
  return of;
}

void AppendRawTile(const KvShape& shape, uint32_t section, uint32_t tile, const uint8_t* bytes,
                   std::vector<uint8_t>* out) {
  const size_t token_bytes = size_t{shape.Channels(section)} * DtypeBytes(shape.dtype);
  const size_t start = out->size();
  out->resize(start + kFormBytes + shape.TileTokens(tile) * token_bytes);
  uint8_t* at = out->data() + start;
  std::memcpy(at, &kRawTile, kFormBytes);
  at += kFormBytes;
  for (uint32_t t = 0; t < shape.TileTokens(tile); ++t, at += token_bytes) {
    ReadRawRow(shape, section, bytes, tile * kTileTokens + t, at);
  }
}

// With the tables, or every tile raw where there are none.
std::vector<uint8_t> EncodeWith(const ChannelTables* tables, const EncodeRequest& request,
                                const std::vector<std::vector<uint16_t>>& words,
                                const std::vector<std::vector<uint8_t>>& low) {
  const KvShape& shape = request.shape;
  std::vector<SectionWriter> writers;
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    writers.emplace_back(shape.Tiles(), shape.SectionBytes(s));
    std::optional<ChannelPlan> plan;
    if (tables != nullptr) plan.emplace(*tables, shape, s);
    const size_t low_bytes = shape.Channels(s) * LowBytes(shape.dtype);
    for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
      std::vector<uint8_t>* out = writers[s].Begin();
      const size_t start = out->size(), first = size_t{tile} * kTileTokens;
      const size_t tokens = shape.TileTokens(tile);
      if (plan) {
        AppendChannelTile(*plan, static_cast<uint32_t>(tokens), words[s].data() + first,
                          shape.tokens, {low[s].data() + first * low_bytes, tokens * low_bytes},
                          out);
      }
      const size_t raw_bytes = tokens * shape.Channels(s) * DtypeBytes(shape.dtype) + kFormBytes;
      if (!plan || out->size() - start >= raw_bytes) {
        out->resize(start);
        AppendRawTile(shape, s, tile, request.sections[s], out);
      }
      writers[s].End();
    }
  }
  const std::vector<uint8_t> bytes = tables == nullptr ? std::vector<uint8_t>{} : tables->ToBytes();
  return Assemble({.codec = CodecId::kLossless, .shape = shape}, writers, bytes);
}

class ChannelDecoder final : public SectionDecoder {
 public:
  ChannelDecoder(const KvShape& shape, std::optional<ChannelTables> tables)
      : shape_(shape), tables_(std::move(tables)) {}

  absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const override {
    std::optional<ChannelPlan> plan;
    if (tables_) plan.emplace(*tables_, shape_, tiles.section());
    Batch batch;
    for (uint32_t t = 0; t < shape_.Tiles(); ++t) {
      const auto tile = tiles.At(t);
      if (!tile.ok()) return tile.status();
      absl::Status status = Take(plan ? &*plan : nullptr, tiles.section(), t, *tile, &batch, out);
      if (!status.ok()) return InTile(tiles.section(), t, status);
      // A batch is of whole tiles, or the last one by itself.
      const bool full = batch.count == kTogether || t + 1 == shape_.Tiles() ||
                        shape_.TileTokens(t + 1) != kTileTokens;
      if (batch.count == 0 || !full) continue;
      if (status = DecodeBatch(*plan, &batch, out); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  struct Batch {
    std::array<ChannelTileDecoder, kTogether> decoders;
    std::array<uint32_t, kTogether> tiles;
    uint32_t count = 0;
    std::vector<uint16_t> words;
    std::vector<uint8_t> values;
  };

  // Writes a raw tile; starts a coded one.
  absl::Status Take(const ChannelPlan* plan, uint32_t section, uint32_t tile,
                    std::span<const uint8_t> bytes, Batch* batch, uint8_t* out) const {
    uint32_t form;
    if (bytes.size() < kFormBytes) return absl::DataLossError("no form");
    std::memcpy(&form, bytes.data(), kFormBytes);
    bytes = bytes.subspan(kFormBytes);
    const uint32_t tokens = shape_.TileTokens(tile);
    if (form == kRawTile) {
      const size_t token_bytes = size_t{shape_.Channels(section)} * DtypeBytes(shape_.dtype);
      if (bytes.size() != tokens * token_bytes) {
        return absl::DataLossError("not as long as its tokens");
      }
      for (uint32_t t = 0; t < tokens; ++t) {
        WriteRawRow(shape_, section, bytes.data() + t * token_bytes, tile * kTileTokens + t, out);
      }
      return absl::OkStatus();
    }
    if (form != kCodedTile) return absl::DataLossError("a form other than 0 and 1");
    if (plan == nullptr) return absl::DataLossError("coded, but the chunk has no tables");
    batch->tiles[batch->count] = tile;
    return batch->decoders[batch->count++].Start(*plan, tokens, bytes);
  }

  absl::Status DecodeBatch(const ChannelPlan& plan, Batch* batch, uint8_t* out) const {
    std::array<kernels::RansStream, kTogether> streams;
    for (uint32_t i = 0; i < batch->count; ++i) streams[i] = *batch->decoders[i].stream();
    const kernels::RansShape shape = plan.ShapeOf(shape_.TileTokens(batch->tiles[0]));
    kernels::RansDecode(tables_->bank(), shape, {streams.data(), batch->count});
    for (uint32_t i = 0; i < batch->count; ++i) {
      batch->decoders[i].stream()->ok = streams[i].ok;
      const absl::Status status = WriteTile(plan, batch, i, out);
      if (!status.ok()) return InTile(plan.section(), batch->tiles[i], status);
    }
    batch->count = 0;
    return absl::OkStatus();
  }

  absl::Status WriteTile(const ChannelPlan& plan, Batch* batch, uint32_t index,
                         uint8_t* out) const {
    const uint32_t section = plan.section(), channels = plan.channels();
    const uint32_t first = batch->tiles[index] * kTileTokens;
    const uint32_t tokens = shape_.TileTokens(batch->tiles[index]);
    const size_t value_bytes = DtypeBytes(shape_.dtype), token_bytes = channels * value_bytes;
    ChannelTileDecoder& decoder = batch->decoders[index];
    if (value_bytes == sizeof(uint16_t) && shape_.order == KvOrder::kTokenMajor) {
      return decoder.Finish(plan, reinterpret_cast<uint16_t*>(out + first * token_bytes));
    }
    batch->words.resize(size_t{tokens} * channels);
    absl::Status status = decoder.Finish(plan, batch->words.data());
    if (!status.ok()) return status;
    batch->values.resize(tokens * token_bytes);
    ValuesOfWords(shape_.dtype, batch->words.data(), decoder.low(), batch->words.size(),
                  batch->values.data());
    for (uint32_t t = 0; t < tokens; ++t) {
      WriteRawRow(shape_, section, batch->values.data() + t * token_bytes, first + t, out);
    }
    return status;
  }

  const KvShape shape_;
  const std::optional<ChannelTables> tables_;  // none when every tile is raw
};

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeChannels(const EncodeRequest& request) {
  const KvShape& shape = request.shape;
  if (shape.tokens == 0) return EncodeWith(nullptr, request, {}, {});
  std::vector<std::vector<uint16_t>> words;
  std::vector<std::vector<uint8_t>> low;
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    SectionWords section = ReadWords(shape, s, request.sections[s]);
    words.push_back(std::move(section.words));
    low.push_back(std::move(section.low));
  }
  const ChannelTables tables = FitChannelTables(shape, words, shape.tokens);
  std::vector<uint8_t> coded = EncodeWith(&tables, request, words, low);
  uint64_t raw_bytes = HeaderBytes(shape);
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    raw_bytes += shape.SectionBytes(s) + shape.Tiles() * (sizeof(TilePlace) + kFormBytes);
  }
  return coded.size() < raw_bytes ? std::move(coded) : EncodeWith(nullptr, request, {}, {});
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenChannels(const DecodeSource& source) {
  const KvShape& shape = source.chunk.header.shape;
  std::optional<ChannelTables> tables;
  if (source.chunk.tables.bytes != 0) {
    const auto bytes = TablesOf(source.container, source.chunk);
    if (!bytes.ok()) return bytes.status();
    auto parsed = ChannelTables::Parse(*bytes, shape);
    if (!parsed.ok()) return parsed.status();
    tables = *std::move(parsed);
  }
  return std::make_unique<const ChannelDecoder>(shape, std::move(tables));
}

}  // namespace terrace::codec
