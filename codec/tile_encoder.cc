#include "codec/tile_encoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec/refinement.h"
#include "kernels/symbol_rounds.h"

namespace terrace::codec {
namespace {

using kernels::kRansLanes;

template <typename T>
void Append(std::vector<uint8_t>* out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  out->insert(out->end(), bytes, bytes + count * sizeof(T));
}

constexpr std::array<uint8_t, kTables> kLowBits = [] {
  std::array<uint8_t, kTables> bits{};
  for (uint32_t t = 0; t < kScaleTables; ++t)
    bits[t] = static_cast<uint8_t>(kernels::LowBitsOfTable(t));
  return bits;
}();

// Coefficients of the fine step become those of the step, and digits.
void Split(int16_t* coefficients, size_t count, int8_t* digits) {
  for (size_t i = 0; i < count; ++i) {
    const int32_t base = BaseOf(coefficients[i]);
    digits[i] = static_cast<int8_t>(coefficients[i] - 3 * base);
    coefficients[i] = static_cast<int16_t>(base);
  }
}

}  // namespace

TokenSums SumToken(const Profile& profile, uint32_t layer, const float* k, const float* v) {
  const uint32_t of_k = profile.heads() * profile.k_dim(), of_v = profile.heads() * profile.v_dim();
  // Without levels only the squares count: any weights do.
  const float* a = profile.levels() ? profile.section(2 * layer).level_weights.data() : nullptr;
  const float* b = profile.levels() ? profile.section(2 * layer + 1).level_weights.data() : nullptr;
  return {kernels::SumRow(k, a == nullptr ? k : a, b == nullptr ? k : b, of_k),
          kernels::SumRow(v, a == nullptr ? v : a + of_k, b == nullptr ? v : b + of_k, of_v)};
}

int8_t LevelOf(const Profile& profile, uint32_t s, const TokenSums& sums) {
  if (!std::isfinite(sums.k.squares) || !std::isfinite(sums.v.squares)) return kRawLevel;
  if (!profile.levels()) return 0;
  // The last three weights: of the norms' logarithms, and a constant.
  const std::vector<float>& weights = profile.section(s).level_weights;
  const float* w = weights.data() + weights.size() - 3;
  float octaves = s % 2 == 0 ? sums.k.a + sums.v.a : sums.k.b + sums.v.b;
  octaves = octaves + w[0] * kernels::RoughLog2(sums.k.squares);
  octaves = octaves + w[1] * kernels::RoughLog2(sums.v.squares);
  octaves = octaves + w[2];
  const float level = std::floor(octaves * 4.0f + 0.5f);
  return static_cast<int8_t>(
      std::isnan(level) ? 0.0f : std::clamp(level, float{kLowestLevel}, float{kHighestLevel}));
}

TileEncoder::TileEncoder(const Profile& profile, uint32_t section,
                         const std::vector<float>& inverse, int32_t lambda16, bool refined)
    : profile_(profile),
      section_(profile.section(section)),
      inverse_(inverse),
      lambda16_(lambda16),
      refined_(refined),
      quantised_(size_t{kTileTokens} * section_.channels),
      coefficients_(section_.block == 1 ? 0 : size_t{kBatch} * section_.channels),
      digits_(refined ? quantised_.size() : 0) {}

void TileEncoder::Begin(uint32_t tokens) { tokens_ = tokens; }

// A token whose coefficients do not fit, or could make the decoder's sums wrap, becomes raw.
void TileEncoder::Add(uint32_t first, uint32_t count, const int8_t* levels, float* values) {
  const uint32_t channels = section_.channels;
  const bool mixed = section_.block != 1;
  for (uint32_t t = 0; t < count; ++t) {
    kernels::Centre(section_.mean.data(), mixed ? nullptr : section_.row_scale.data(), channels,
                    values + size_t{t} * channels);
  }
  const float* coefficients = values;
  if (mixed) {
    kernels::ApplyBlocks(inverse_.data(), channels, section_.block, values, count,
                         coefficients_.data());
    coefficients = coefficients_.data();
  }
  const int64_t limit = int64_t{1} << 31;
  for (uint32_t t = 0; t < count; ++t) {
    levels_[first + t] = levels[t];
    int16_t* out = quantised_.data() + size_t{first + t} * channels;
    if (levels[t] != kRawLevel) {
      const float per_step = PowerOf16th(4 * levels[t] - lambda16_) * (refined_ ? 3.0f : 1.0f);
      const uint32_t magnitude =
          kernels::Quantise(coefficients + size_t{t} * channels, per_step, channels, out);
      const bool wraps = mixed && int64_t{magnitude} * 32768 >= limit;
      if (magnitude != kernels::kTooLarge && !wraps) {
        if (refined_) Split(out, channels, digits_.data() + size_t{first + t} * channels);
        continue;
      }
      levels_[first + t] = kRawLevel;
    }
    std::fill(out, out + channels, 0);
    if (refined_) std::fill_n(digits_.begin() + size_t{first + t} * channels, channels, 0);
  }
}

void TileEncoder::Pack() {
  plan_.emplace(section_, lambda16_, levels_.data(), tokens_);
  const size_t rounds = plan_->shape().rounds;
  symbols_.resize(rounds * kRansLanes);
  std::fill_n(symbols_.begin(), plan_->groups() * kRansLanes, 0);
  for (uint32_t t = 0; t < tokens_; ++t) {
    symbols_[t] = static_cast<uint8_t>(levels_[t] - kRawLevel);
  }
  escaped_.resize(rounds);
  plane_at_.clear();
  planes_.resize(plan_->AllLowBits());
  uint32_t at = 0;
  for (uint32_t round = 0; round < rounds && !planes_.empty(); ++round) {
    plane_at_.push_back(at);
    at += plan_->LowBits(round);
  }
  digit_symbols_.resize(refined_ ? refined_shape().rounds * kRansLanes : 0);
  for (uint32_t g = 0; g < plan_->groups(); ++g) {
    PackGroup(g);
    if (refined_) PackDigits(g);
  }
  escapes_.clear();
  for (uint32_t round = plan_->groups(); round < rounds; ++round) {
    for (uint32_t lanes = escaped_[round]; lanes != 0; lanes &= lanes - 1) {
      const auto lane = static_cast<uint32_t>(std::countr_zero(lanes));
      const uint32_t channel = round / plan_->groups() - 1;
      const uint8_t token = plan_->order()[round % plan_->groups() * kRansLanes + lane];
      escapes_.emplace_back(round * kRansLanes + lane,
                            quantised_[size_t{token} * section_.channels + channel]);
    }
  }
}

void TileEncoder::PackGroup(uint32_t group) {
  std::array<const int16_t*, kRansLanes> rows;
  const uint32_t lanes = plan_->Lanes(group), round = plan_->groups() + group;
  for (uint32_t lane = 0; lane < lanes; ++lane) {
    const size_t token = plan_->order()[group * kRansLanes + lane];
    rows[lane] = quantised_.data() + token * section_.channels;
  }
  kernels::PackRounds({rows.data(), lanes, section_.channels, plan_->groups(), &profile_.tables(),
                       plan_->schedule().data() + round, kLowBits.data(),
                       symbols_.data() + size_t{round} * kRansLanes, escaped_.data() + round,
                       planes_.empty() ? nullptr : plane_at_.data() + round, planes_.data()});
}

void TileEncoder::PackDigits(uint32_t group) {
  const uint32_t groups = plan_->groups();
  for (uint32_t lane = 0; lane < plan_->Lanes(group); ++lane) {
    const size_t row = size_t{plan_->order()[group * kRansLanes + lane]} * section_.channels;
    uint8_t* symbol = digit_symbols_.data() + group * kRansLanes + lane;
    for (uint32_t c = 0; c < section_.channels; ++c, symbol += groups * kRansLanes) {
      const int8_t digit = digits_[row + c];
      *symbol = static_cast<uint8_t>(kZeroSymbol + (quantised_[row + c] < 0 ? -digit : digit));
    }
  }
}

kernels::RansShape TileEncoder::refined_shape() const {
  return TilePlan::RefinedShapeOf(tokens_, section_.channels);
}

kernels::RansSource TileEncoder::RefinedSource() {
  refined_stream_.resize(kernels::RansBound(refined_shape().rounds));
  return {digit_symbols_.data(), plan_->schedule().data() + plan_->groups(), refined_stream_.data(),
          0};
}

kernels::RansSource TileEncoder::Source() {
  stream_.resize(kernels::RansBound(plan_->shape().rounds));
  return {symbols_.data(), plan_->schedule().data(), stream_.data(), 0};
}

void TileEncoder::AppendTo(std::vector<uint8_t>* out, size_t rans_bytes) const {
  const uint32_t counts[2] = {static_cast<uint32_t>(rans_bytes),
                              static_cast<uint32_t>(escapes_.size())};
  Append(out, counts, 2);
  Append(out, stream_.data(), rans_bytes);
  Append(out, planes_.data(), planes_.size());
  for (const auto& [place, coefficient] : escapes_) {
    Append(out, &place, 1);
    Append(out, &coefficient, 1);
  }
}

}  // namespace terrace::codec
