#include "codec/tile_decoder.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <optional>

#include "codec/container.h"
#include "codec/refinement.h"
#include "kernels/tile_math.h"

namespace terrace::codec {

using kernels::kRansLanes;

namespace {

constexpr uint32_t kRangeChannels = 128;

struct Escape {
  uint32_t place = 0;
  int16_t coefficient = 0;
};

Escape EscapeAt(const uint8_t* bytes) {
  Escape escape;
  std::memcpy(&escape.place, bytes, sizeof escape.place);
  std::memcpy(&escape.coefficient, bytes + sizeof escape.place, sizeof escape.coefficient);
  return escape;
}

}  // namespace

// A tile as far as it was read.
struct TileDecoder::Tile {
  uint32_t tokens = 0, first_token = 0;
  std::span<const uint8_t> stream, rest;  // the rANS stream; what was not yet used after it
  std::span<const uint8_t> planes, escapes, raw;
  size_t escape_bytes = 0;
  std::array<int8_t, kTileTokens> levels;
  std::optional<TilePlan> plan;
  // In the order of the plan. Raw tokens come first in it, for their level is the lowest.
  std::array<kernels::TokenPlace, kTileTokens> places;
  uint32_t raw_tokens = 0;
};

TileDecoder::TileDecoder(const Profile& profile, uint32_t section, int32_t lambda16,
                         const SectionOutput& output)
    : profile_(profile),
      index_(section),
      section_(profile.section(section)),
      lambda16_(lambda16),
      output_(output),
      together_(section_.block == 1 ? output.dim : section_.block),
      range_(std::min(section_.channels, std::max(1u, kRangeChannels / together_) * together_)),
      wide_(std::make_unique_for_overwrite<int16_t[]>(kRansLanes * together_)) {
  if (section_.block == 1) {
    narrow_ = std::make_unique_for_overwrite<int8_t[]>(kRansLanes * together_);
  } else {
    sums_ = std::make_unique_for_overwrite<int32_t[]>(kRansLanes * together_);
  }
}

TileDecoder::~TileDecoder() = default;

absl::Status TileDecoder::Decode(uint32_t first_tile, uint32_t tokens,
                                 std::span<const std::span<const uint8_t>> tiles,
                                 std::span<const std::span<const uint8_t>> refined) {
  const kernels::RansShape shape = TilePlan::ShapeOf(tokens, section_.channels);
  const auto groups = static_cast<uint32_t>(shape.rounds_per_channel);
  Reserve(tiles.size(), groups, !refined.empty());
  kernels::RansDecoder rans(profile_.tables(), shape);
  kernels::RansDecoder finer(RefinementTables(),
                             TilePlan::RefinedShapeOf(tokens, section_.channels));
  std::array<const uint8_t*, kTogether> schedules;
  std::array<uint8_t*, kTogether> symbols, digits{};
  static constexpr uint8_t kLevelTables[kMaxGroups] = {kLevelTable, kLevelTable, kLevelTable,
                                                       kLevelTable};
  const auto in_tile = [&](size_t i, const absl::Status& status) {
    return InTile(index_, static_cast<uint32_t>(first_tile + i), status);
  };
  for (size_t i = 0; i < tiles.size(); ++i) {
    const auto first_token = static_cast<uint32_t>(first_tile + i) * kTileTokens;
    absl::Status status = Parse(first_token, tokens, tiles[i], &tiles_[i]);
    if (status.ok() && !rans.Add(tiles_[i].stream.data(), tiles_[i].stream.size())) {
      status = absl::DataLossError("its rANS stream is cut off");
    }
    if (status.ok() && !refined.empty() && !finer.Add(refined[i].data(), refined[i].size())) {
      status = absl::DataLossError("its refinement is cut off");
    }
    if (!status.ok()) return in_tile(i, status);
    if (!refined.empty()) digits[i] = digits_.get() + i * symbols_each_;
    schedules[i] = kLevelTables;
    symbols[i] = symbols_.get() + i * symbols_each_;
  }
  rans.Decode(groups, schedules.data(), symbols.data());
  for (size_t i = 0; i < tiles.size(); ++i) {
    const absl::Status status = SetLevels(symbols[i], !refined.empty(), &tiles_[i]);
    if (!status.ok()) return in_tile(i, status);
    WriteRaw(tiles_[i]);
  }
  for (uint32_t first = 0; first < section_.channels; first += range_) {
    const uint32_t channels = std::min(range_, section_.channels - first);
    for (size_t i = 0; i < tiles.size(); ++i) {
      schedules[i] = tiles_[i].plan->schedule().data() + (1 + first) * groups;
    }
    rans.Decode(size_t{channels} * groups, schedules.data(), symbols.data());
    if (!refined.empty()) {
      finer.Decode(size_t{channels} * groups, schedules.data(), digits.data());
    }
    for (size_t i = 0; i < tiles.size(); ++i) {
      const absl::Status status = TakeRange(first, channels, symbols[i], &tiles_[i]);
      if (!status.ok()) return in_tile(i, status);
      for (uint32_t c = first; c < first + channels; c += together_) {
        const size_t at = size_t{c - first} * groups * kRansLanes;
        for (uint32_t g = 0; g < groups; ++g) {
          WriteGroup(tiles_[i], g, c, symbols[i] + at,
                     digits[i] == nullptr ? nullptr : digits[i] + at);
        }
      }
    }
  }
  for (size_t i = 0; i < tiles.size(); ++i) {
    if (!rans.Ended(i)) return in_tile(i, absl::DataLossError("its rANS stream is damaged"));
    if (!refined.empty() && !finer.Ended(i)) {
      return in_tile(i, absl::DataLossError("its refinement is damaged"));
    }
    if (!tiles_[i].escapes.empty()) {
      return in_tile(i, absl::DataLossError("more escapes than its symbols say"));
    }
  }
  return absl::OkStatus();
}

void TileDecoder::Reserve(size_t tiles, uint32_t groups, bool refined) {
  const size_t each = std::max(size_t{range_}, size_t{1}) * groups * kRansLanes;
  if (tiles > tiles_.size() || each > symbols_each_) {
    tiles_.resize(std::max(tiles, tiles_.size()));
    symbols_each_ = std::max(each, symbols_each_);
    symbols_ = std::make_unique_for_overwrite<uint8_t[]>(tiles_.size() * symbols_each_);
    digits_.reset();
  }
  if (refined && digits_ == nullptr) {
    digits_ = std::make_unique_for_overwrite<uint8_t[]>(tiles_.size() * symbols_each_);
    digit_rows_ = std::make_unique_for_overwrite<int8_t[]>(kRansLanes * together_);
  }
}

absl::Status TileDecoder::Parse(uint32_t first_token, uint32_t tokens,
                                std::span<const uint8_t> bytes, Tile* tile) const {
  tile->tokens = tokens;
  tile->first_token = first_token;
  if (bytes.size() < kTileFixedBytes) return absl::DataLossError("shorter than its counts");
  uint32_t rans_bytes, escapes;
  std::memcpy(&rans_bytes, bytes.data(), sizeof rans_bytes);
  std::memcpy(&escapes, bytes.data() + sizeof rans_bytes, sizeof escapes);
  bytes = bytes.subspan(kTileFixedBytes);
  if (rans_bytes > bytes.size()) return absl::DataLossError("its rANS stream is cut off");
  tile->stream = bytes.first(rans_bytes);
  tile->rest = bytes.subspan(rans_bytes);
  tile->escape_bytes = size_t{escapes} * kEscapeBytes;
  return absl::OkStatus();
}

absl::Status TileDecoder::SetLevels(const uint8_t* symbols, bool refined, Tile* tile) const {
  for (uint32_t t = 0; t < tile->tokens; ++t) {
    tile->levels[t] = static_cast<int8_t>(symbols[t] + kRawLevel);
  }
  tile->plan.emplace(section_, lambda16_, tile->levels.data(), tile->tokens);
  tile->raw_tokens = 0;
  const size_t pairs = output_.rotary_dim / 2;
  for (uint32_t i = 0; i < tile->tokens; ++i) {
    const uint8_t in_tile = tile->plan->order()[i];
    const size_t token = tile->first_token + in_tile;
    tile->raw_tokens += tile->levels[in_tile] == kRawLevel;
    const float step = PowerOf16th(lambda16_ - 4 * tile->levels[in_tile]);
    tile->places[i] = {refined ? step / 3 : step, output_.cosines + token * pairs,
                       output_.sines + token * pairs, output_.bytes + token * output_.token_stride};
  }
  const size_t plane_bytes = sizeof(uint32_t) * tile->plan->AllLowBits();
  const size_t raw_bytes = size_t{tile->raw_tokens} * section_.channels * DtypeBytes(output_.dtype);
  if (tile->rest.size() != plane_bytes + tile->escape_bytes + raw_bytes) {
    return absl::DataLossError("its length is not what its counts say");
  }
  tile->planes = tile->rest.first(plane_bytes);
  tile->escapes = tile->rest.subspan(plane_bytes, tile->escape_bytes);
  tile->raw = tile->rest.last(raw_bytes);
  return absl::OkStatus();
}

void TileDecoder::WriteRaw(const Tile& tile) const {
  const uint8_t* raw = tile.raw.data();
  const size_t head_bytes = size_t{output_.dim} * DtypeBytes(output_.dtype);
  for (uint32_t i = 0; i < tile.raw_tokens; ++i) {
    for (uint32_t h = 0; h < output_.heads; ++h, raw += head_bytes) {
      std::memcpy(tile.places[i].out + h * output_.head_stride, raw, head_bytes);
    }
  }
}

// Takes the low bits and the escapes of channels [first, first + channels). Each escape symbol has
// its coefficient in the list, in the same order.
absl::Status TileDecoder::TakeRange(uint32_t first, uint32_t channels, const uint8_t* symbols,
                                    Tile* tile) {
  const uint32_t groups = tile->plan->groups();
  for (uint32_t g = 0; g < groups; ++g) {
    most_low_[g] = 0;
    if (tile->plan->AllLowBits() != 0) low_[g].resize(channels);
  }
  for (uint32_t c = 0; c < channels && tile->plan->AllLowBits() != 0; ++c) {
    for (uint32_t g = 0; g < groups; ++g) {
      const uint32_t bits = tile->plan->LowBits((1 + first + c) * groups + g);
      low_[g][c] = {bits, tile->planes.data()};
      most_low_[g] = std::max(most_low_[g], bits);
      tile->planes = tile->planes.subspan(sizeof(uint32_t) * bits);
    }
  }
  const size_t begin = size_t{1 + first} * groups * kRansLanes;
  const size_t count = size_t{channels} * groups * kRansLanes;
  size_t bytes = 0;
  for (size_t next = begin; bytes < tile->escapes.size(); bytes += kEscapeBytes) {
    const size_t place = EscapeAt(tile->escapes.data() + bytes).place;
    if (place >= begin + count) break;
    if (place < next || symbols[place - begin] != kEscapeSymbol) {
      return absl::DataLossError("an escape has a wrong place");
    }
    next = place + 1;
  }
  if (kernels::CountSymbol(symbols, count, kEscapeSymbol) != bytes / kEscapeBytes) {
    return absl::DataLossError("fewer escapes than its symbols say");
  }
  escapes_ = tile->escapes.first(bytes);
  tile->escapes = tile->escapes.subspan(bytes);
  return absl::OkStatus();
}

// The group's values of channels [first, first + together_).
void TileDecoder::WriteGroup(const Tile& tile, uint32_t group, uint32_t first,
                             const uint8_t* symbols, const uint8_t* digits) {
  const uint32_t lanes = tile.plan->Lanes(group);
  if (tile.raw_tokens >= group * kRansLanes + lanes) return;
  bool narrow =
      section_.block == 1 && most_low_[group] <= kernels::kNarrowBits && digits == nullptr;
  for (size_t at = 0; at < escapes_.size(); at += kEscapeBytes) {
    const int16_t coefficient = EscapeAt(escapes_.data() + at).coefficient;
    narrow &= coefficient >= -128 && coefficient <= 127;
  }
  if (narrow) {
    Unpack(tile, group, first, symbols, narrow_.get());
  } else {
    Unpack(tile, group, first, symbols, wide_.get());
  }
  if (digits != nullptr) {
    const size_t stride = size_t{tile.plan->groups()} * kRansLanes;
    kernels::UnpackRows({digits + group * kRansLanes, stride, together_, nullptr}, together_,
                        digit_rows_.get());
    RefineRows(digit_rows_.get(), kRansLanes * together_, wide_.get());
  }
  WriteHeads(tile, group, first, narrow);
}

template <typename T>
void TileDecoder::Unpack(const Tile& tile, uint32_t group, uint32_t first, const uint8_t* symbols,
                         T* rows) {
  const uint32_t groups = tile.plan->groups();
  const kernels::LowBits* low =
      most_low_[group] == 0 ? nullptr : low_[group].data() + first % range_;
  kernels::UnpackRows({symbols + group * kRansLanes, groups * kRansLanes, together_, low},
                      together_, rows);
  for (size_t at = 0; at < escapes_.size(); at += kEscapeBytes) {
    const Escape escape = EscapeAt(escapes_.data() + at);
    const uint32_t round = escape.place / kRansLanes - groups, lane = escape.place % kRansLanes;
    const uint32_t channel = round / groups;
    if (round % groups != group || channel < first || channel >= first + together_) continue;
    rows[lane * together_ + channel - first] = static_cast<T>(escape.coefficient);
  }
}

void TileDecoder::WriteHeads(const Tile& tile, uint32_t group, uint32_t first, bool narrow) {
  const uint32_t begin = group * kRansLanes, end = begin + tile.plan->Lanes(group);
  const uint32_t raw = std::max(tile.raw_tokens, begin) - begin;
  const std::span<const kernels::TokenPlace> tokens(tile.places.data() + begin + raw,
                                                    end - begin - raw);
  if (section_.block != 1) {
    const size_t matrix = kernels::PairedSize(first / together_ * together_, together_);
    kernels::ApplyIntegerBlocks(section_.pairs.data() + matrix, together_, together_,
                                wide_.get() + raw * together_, tokens.size(), sums_.get());
  }
  for (uint32_t c = first; c < first + together_; c += output_.dim) {
    const kernels::HeadFormat head{output_.dtype,
                                   output_.dim,
                                   output_.rotary_dim,
                                   output_.pairing,
                                   section_.row_scale.data() + c,
                                   section_.mean.data() + c,
                                   output_.stream};
    const size_t at = c / output_.dim * output_.head_stride;
    if (section_.block != 1) {
      WriteHead(head, sums_.get() + c - first, together_, tokens, at);
    } else if (narrow) {
      WriteHead(head, narrow_.get() + raw * together_, together_, tokens, at);
    } else {
      WriteHead(head, wide_.get() + raw * together_, together_, tokens, at);
    }
  }
}

}  // namespace terrace::codec
