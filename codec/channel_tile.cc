#include "codec/channel_tile.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "codec/value_words.h"
#include "kernels/tile_layout.h"

namespace terrace::codec {
namespace {

using kernels::kRansLanes;
using kernels::kWordEscape;

constexpr size_t kCountsBytes = 8;  // rANS bytes u32, escapes u32
constexpr uint32_t kMaxKeptBits = 16;

uint32_t GroupsOf(uint32_t tokens) { return (tokens + kRansLanes - 1) / kRansLanes; }

uint32_t LanesOf(uint32_t tokens, uint32_t group) {
  return std::min<uint32_t>(kRansLanes, tokens - group * kRansLanes);
}

template <typename T>
void Append(std::vector<uint8_t>* out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  out->insert(out->end(), bytes, bytes + count * sizeof(T));
}

}  // namespace

ChannelPlan::ChannelPlan(const ChannelTables& tables, const KvShape& shape, uint32_t section)
    : tables_(tables), shape_(shape), section_(section) {
  const uint32_t floor = WordFormatOf(shape.dtype).floor;
  for (const ChannelCode& code : tables.codes(section)) {
    cells_.push_back(tables.Cells(code));
    kept_bits_.push_back(kernels::KeptBits(cells_.back(), floor));
    plane_bytes_ += sizeof(uint32_t) * std::popcount(kept_bits_.back());
  }
}

kernels::RansShape ChannelPlan::ShapeOf(uint32_t tokens) const {
  const size_t groups = GroupsOf(tokens);
  return {groups * channels(), groups, tokens - kRansLanes * (groups - 1)};
}

std::vector<uint8_t> ChannelPlan::ScheduleOf(uint32_t groups) const {
  std::vector<uint8_t> schedule;
  schedule.reserve(size_t{groups} * channels());
  for (const ChannelCode& code : tables_.codes(section_)) {
    schedule.insert(schedule.end(), groups, code.table);
  }
  return schedule;
}

void AppendChannelTile(const ChannelPlan& plan, uint32_t tokens, const uint16_t* words,
                       size_t stride, std::span<const uint8_t> low, std::vector<uint8_t>* out) {
  const kernels::RansShape shape = plan.ShapeOf(tokens);
  const uint32_t groups = GroupsOf(tokens), floor = WordFormatOf(plan.shape().dtype).floor;
  std::vector<uint8_t> symbols(shape.rounds * kRansLanes), planes;
  std::vector<uint16_t> escapes;
  planes.reserve(plan.plane_bytes() * groups);
  uint8_t* round = symbols.data();
  for (uint32_t c = 0; c < plan.channels(); ++c) {
    const auto kept = static_cast<size_t>(std::popcount(plan.kept_bits(c)));
    for (uint32_t g = 0; g < groups; ++g, round += kRansLanes) {
      const uint32_t lanes = LanesOf(tokens, g);
      uint16_t of_round[kRansLanes] = {};
      std::copy_n(words + c * stride + g * kRansLanes, lanes, of_round);
      uint32_t bits[kMaxKeptBits];
      kernels::SymbolsOfWords(of_round, plan.cells(c), floor, round, bits);
      Append(&planes, bits, kept);
      for (uint32_t lane = 0; lane < lanes; ++lane) {
        if (round[lane] == kWordEscape) escapes.push_back(of_round[lane]);
      }
    }
  }
  const std::vector<uint8_t> schedule = plan.ScheduleOf(groups);
  std::vector<uint8_t> stream(kernels::RansBound(shape.rounds));
  kernels::RansSource source{symbols.data(), schedule.data(), stream.data(), 0};
  kernels::RansEncode(plan.tables().bank(), shape, {&source, 1});  // tables have all its symbols
  const uint32_t counts[3] = {kCodedTile, static_cast<uint32_t>(source.size),
                              static_cast<uint32_t>(escapes.size())};
  Append(out, counts, 3);
  Append(out, stream.data(), source.size);
  Append(out, planes.data(), planes.size());
  Append(out, low.data(), low.size());
  Append(out, escapes.data(), escapes.size());
}

absl::Status ChannelTileDecoder::Start(const ChannelPlan& plan, uint32_t tokens,
                                       std::span<const uint8_t> bytes) {
  tokens_ = tokens;
  if (bytes.size() < kCountsBytes) return absl::DataLossError("shorter than its counts");
  uint32_t rans_bytes, escapes;
  std::memcpy(&rans_bytes, bytes.data(), sizeof rans_bytes);
  std::memcpy(&escapes, bytes.data() + sizeof rans_bytes, sizeof escapes);
  const std::span<const uint8_t> rest = bytes.subspan(kCountsBytes);
  const uint32_t groups = GroupsOf(tokens);
  const uint64_t plane_bytes = uint64_t{plan.plane_bytes()} * groups;
  const uint64_t low_bytes = uint64_t{tokens} * plan.channels() * LowBytes(plan.shape().dtype);
  const uint64_t escape_bytes = uint64_t{escapes} * sizeof(uint16_t);
  if (rest.size() != rans_bytes + plane_bytes + low_bytes + escape_bytes) {
    return absl::DataLossError("its length is not what its counts say");
  }
  planes_ = rest.data() + rans_bytes;
  low_ = planes_ + plane_bytes;
  escapes_ = rest.last(escape_bytes);
  schedule_ = plan.ScheduleOf(groups);
  symbols_.resize(size_t{groups} * plan.channels() * kRansLanes);
  stream_ = {rest.data(), rans_bytes, schedule_.data(), symbols_.data(), false};
  return absl::OkStatus();
}

absl::Status ChannelTileDecoder::Finish(const ChannelPlan& plan, uint16_t* words) {
  if (!stream_.ok) return absl::DataLossError("its rANS stream is damaged");
  const uint32_t channels = plan.channels(), groups = GroupsOf(tokens_);
  std::vector<uint16_t> rounds(symbols_.size());
  const uint8_t* plane = planes_;
  const uint8_t* escape = escapes_.data();
  size_t at = 0;
  for (uint32_t c = 0; c < channels; ++c) {
    const uint32_t kept = plan.kept_bits(c);
    uint16_t of_symbol[kernels::kWordLanes];
    kernels::FillWordsOfSymbols(plan.cells(c), of_symbol);
    for (uint32_t g = 0; g < groups; ++g, at += kRansLanes) {
      const uint8_t* symbols = symbols_.data() + at;
      kernels::WordsOfSymbols(symbols, of_symbol, plane, kept, rounds.data() + at);
      plane += sizeof(uint32_t) * std::popcount(kept);
      if (std::memchr(symbols, kWordEscape, kRansLanes) == nullptr) continue;
      for (uint32_t lane = 0; lane < LanesOf(tokens_, g); ++lane) {
        if (symbols[lane] != kWordEscape) continue;
        if (escape == escapes_.data() + escapes_.size()) {
          return absl::DataLossError("fewer escapes than its symbols say");
        }
        std::memcpy(&rounds[at + lane], escape, sizeof(uint16_t));
        escape += sizeof(uint16_t);
      }
    }
  }
  if (escape != escapes_.data() + escapes_.size()) {
    return absl::DataLossError("more escapes than its symbols say");
  }
  uint8_t order[kTileTokens];
  std::iota(order, order + kTileTokens, 0);
  for (uint32_t g = 0; g < groups; ++g) {
    kernels::TransposeLanes(
        reinterpret_cast<const int16_t*>(rounds.data()) + size_t{g} * kRansLanes, channels,
        size_t{groups} * kRansLanes, LanesOf(tokens_, g), order + g * kRansLanes,
        reinterpret_cast<int16_t*>(words));
  }
  return absl::OkStatus();
}

}  // namespace terrace::codec
