#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "codec/profile_coder.h"
#include "kernels/tile_layout.h"
#include "kernels/tile_math.h"

namespace terrace::codec {

using kernels::kRansLanes;

absl::Status TileDecoder::Start(const Profile& profile, uint32_t s, int32_t lambda16,
                                uint32_t tokens, uint32_t source_value_bytes,
                                std::span<const uint8_t> bytes) {
  section_ = &profile.section(s);
  lambda16_ = lambda16;
  tokens_ = tokens;
  if (bytes.size() < kTileFixedBytes) return absl::DataLossError("shorter than its counts");
  uint32_t rans_bytes, escapes;
  std::memcpy(&rans_bytes, bytes.data(), sizeof rans_bytes);
  std::memcpy(&escapes, bytes.data() + sizeof rans_bytes, sizeof escapes);
  std::span<const uint8_t> rest = bytes.subspan(kTileFixedBytes);
  if (rans_bytes > rest.size()) return absl::DataLossError("its rANS stream is cut off");
  const kernels::RansShape shape = TilePlan::ShapeOf(tokens, section_->channels);
  const uint8_t level_tables[kMaxGroups] = {kLevelTable, kLevelTable, kLevelTable, kLevelTable};
  uint8_t symbols[kTileTokens];
  if (!kernels::RansPeek(profile.tables(), shape, shape.rounds_per_channel,
                         {rest.data(), rans_bytes, level_tables, symbols, false})) {
    return absl::DataLossError("its rANS stream is cut off");
  }
  for (uint32_t t = 0; t < tokens; ++t) levels_[t] = static_cast<int8_t>(symbols[t] + kRawLevel);
  plan_.emplace(*section_, lambda16, levels_.data(), tokens);

  const size_t token_bytes = size_t{section_->channels} * source_value_bytes;
  const auto raw_tokens = static_cast<size_t>(
      std::count(levels_.begin(), levels_.begin() + tokens, static_cast<int8_t>(kRawLevel)));
  size_t plane_bytes = 0;
  for (uint32_t round = shape.rounds_per_channel; round < shape.rounds; ++round) {
    plane_bytes += sizeof(uint32_t) * plan_->LowBits(round);
  }
  const uint64_t escape_bytes = uint64_t{escapes} * kEscapeBytes;
  if (rest.size() != rans_bytes + plane_bytes + escape_bytes + raw_tokens * token_bytes) {
    return absl::DataLossError("its length is not what its counts say");
  }
  planes_ = rest.subspan(rans_bytes, plane_bytes);
  escapes_ = rest.subspan(rans_bytes + plane_bytes, escape_bytes);
  const uint8_t* raw = escapes_.data() + escapes_.size();
  for (uint32_t t = 0; t < tokens; ++t) {
    raw_[t] = levels_[t] == kRawLevel ? raw : nullptr;
    if (raw_[t] != nullptr) raw += token_bytes;
  }
  symbols_.resize(size_t{shape.rounds} * kRansLanes);
  stream_ = {rest.data(), rans_bytes, plan_->schedule().data(), symbols_.data(), false};
  return absl::OkStatus();
}

absl::Status TileDecoder::Finish() {
  if (!stream_.ok) return absl::DataLossError("its rANS stream is damaged");
  const uint32_t channels = section_->channels, groups = plan_->groups();
  const kernels::RansShape& shape = plan_->shape();
  std::vector<int16_t> rounds(shape.rounds * kRansLanes);
  const uint8_t* plane = planes_.data();
  for (uint32_t round = groups; round < shape.rounds; ++round) {
    const uint32_t bits = plan_->LowBits(round);
    uint32_t planes[16];
    std::memcpy(planes, plane, bits * sizeof *planes);
    plane += bits * sizeof *planes;
    kernels::CoefficientsOfSymbols(symbols_.data() + size_t{round} * kRansLanes, bits, planes,
                                   rounds.data() + size_t{round} * kRansLanes);
  }
  quantised_.resize(size_t{tokens_} * channels);
  for (uint32_t g = 0; g < groups; ++g) {
    kernels::TransposeLanes(rounds.data() + size_t{groups + g} * kRansLanes, channels,
                            groups * kRansLanes, plan_->Lanes(g),
                            plan_->order().data() + g * kRansLanes, quantised_.data());
  }
  return TakeEscapes();
}

// Each escape symbol has its coefficient in the list, in the same order.
absl::Status TileDecoder::TakeEscapes() {
  const uint8_t* escape = escapes_.data();
  const uint8_t* const end = escape + escapes_.size();
  const size_t first = size_t{plan_->groups()} * kRansLanes;
  const auto* next = symbols_.data() + first;
  const auto* const symbols_end = symbols_.data() + symbols_.size();
  while ((next = std::find(next, symbols_end, static_cast<uint8_t>(kEscapeSymbol))) !=
         symbols_end) {
    uint32_t place;
    int16_t q;
    if (escape == end) return absl::DataLossError("fewer escapes than its symbols say");
    std::memcpy(&place, escape, sizeof place);
    std::memcpy(&q, escape + sizeof place, sizeof q);
    escape += kEscapeBytes;
    if (place != next - symbols_.data()) return absl::DataLossError("an escape has a wrong place");
    const uint32_t round = place / kRansLanes, groups = plan_->groups();
    const uint32_t lane = round % groups * kRansLanes + place % kRansLanes;
    quantised_[size_t{plan_->order()[lane]} * section_->channels + round / groups - 1] = q;
    ++next;
  }
  return escape == end ? absl::OkStatus()
                       : absl::DataLossError("more escapes than its symbols say");
}

void TileDecoder::Tokens(uint32_t first, uint32_t count, float* values) {
  const uint32_t channels = section_->channels;
  const int16_t* q = quantised_.data() + size_t{first} * channels;
  const bool mixed = section_->block != 1;
  if (mixed) {
    sums_.resize(size_t{kBatch} * channels);
    kernels::ApplyIntegerBlocks(section_->pairs.data(), channels, section_->block, q, count,
                                sums_.data());
  }
  for (uint32_t t = 0; t < count; ++t, values += channels) {
    const float step = PowerOf16th(lambda16_ - 4 * levels_[first + t]);
    const float* scale = section_->row_scale.data();
    const float* mean = section_->mean.data();
    const size_t at = size_t{t} * channels;
    if (mixed) {
      kernels::Dequantise(sums_.data() + at, channels, step, scale, mean, values);
    } else {
      kernels::Dequantise(q + at, channels, step, scale, mean, values);
    }
  }
}

}  // namespace terrace::codec
