#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

#include "codec/profile_coder.h"
#include "kernels/tile_math.h"

namespace terrace::codec {
namespace {

using kernels::kRansLanes;

template <typename T>
void Append(std::vector<uint8_t>* out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  out->insert(out->end(), bytes, bytes + count * sizeof(T));
}

// Coefficients as int16, [token][coefficient]. A token whose coefficients do not fit, or could make
// the decoder's sums wrap, becomes raw.
void Quantise(const SectionProfile& section, const std::vector<float>& inverse, int32_t lambda16,
              const EncodeInput& input, std::vector<int16_t>* quantised) {
  const uint32_t channels = section.channels;
  std::vector<float> centred(channels), coefficients(channels);
  quantised->assign(size_t{input.tokens} * channels, 0);
  const int64_t limit = int64_t{1} << 31;
  for (uint32_t t = 0; t < input.tokens; ++t) {
    if (input.levels[t] == kRawLevel) continue;
    const float* values = input.values + size_t{t} * channels;
    for (uint32_t c = 0; c < channels; ++c) centred[c] = values[c] - section.mean[c];
    if (section.block == 1) {
      for (uint32_t c = 0; c < channels; ++c) coefficients[c] = centred[c] / section.row_scale[c];
    } else {
      kernels::ApplyBlocks(inverse.data(), channels, section.block, centred.data(),
                           coefficients.data());
    }
    const float per_step = PowerOf16th(4 * input.levels[t] - lambda16);
    int16_t* out = quantised->data() + size_t{t} * channels;
    int64_t magnitude = 0;
    bool fits = true;
    for (uint32_t c = 0; c < channels; ++c) {
      const float q = std::nearbyint(coefficients[c] * per_step);
      fits &= std::abs(q) <= 32767;
      out[c] = fits ? static_cast<int16_t>(q) : 0;
      magnitude += std::abs(int64_t{out[c]});
    }
    if (!fits || (section.block != 1 && magnitude * 32768 >= limit)) {
      input.levels[t] = kRawLevel;
      std::fill(out, out + channels, 0);
    }
  }
}

struct Symbols {
  std::vector<uint8_t> symbols;  // 32 a round
  std::vector<uint32_t> planes;
  std::vector<std::pair<uint32_t, int16_t>> escapes;
};

void MakeSymbols(const TilePlan& plan, uint32_t channels, const EncodeInput& input,
                 const std::vector<int16_t>& quantised, Symbols* s) {
  s->symbols.assign(size_t{plan.shape().rounds} * kRansLanes, 0);
  for (uint32_t t = 0; t < input.tokens; ++t) s->symbols[t] = input.levels[t] - kRawLevel;
  const uint32_t groups = plan.groups();
  for (uint32_t round = groups; round < plan.shape().rounds; ++round) {
    const uint32_t c = round / groups - 1, first = round % groups * kRansLanes;
    const uint32_t bits = plan.LowBits(round), half = (1u << bits) >> 1;
    const kernels::RansTable& table = input.tables->tables[plan.schedule()[round]];
    uint32_t planes[16] = {};
    for (uint32_t lane = 0; lane < plan.Lanes(round); ++lane) {
      const int32_t q = quantised[size_t{plan.order()[first + lane]} * channels + c];
      const int32_t biased = q + static_cast<int32_t>(half), high = biased >> bits;
      uint8_t& symbol = s->symbols[size_t{round} * kRansLanes + lane];
      if (high < -15 || high > 15 || table.gap[high + 15] == kernels::kRansTotal) {
        symbol = kEscapeSymbol;
        s->escapes.emplace_back(round * kRansLanes + lane, static_cast<int16_t>(q));
        continue;
      }
      symbol = high + 15;
      for (uint32_t b = 0; b < bits; ++b) planes[b] |= (biased >> b & 1u) << lane;
    }
    s->planes.insert(s->planes.end(), planes, planes + bits);
  }
}

}  // namespace

void ChooseLevels(const Profile& profile, uint32_t s, const LayerTile& tile, int8_t* levels) {
  const SectionProfile& section = profile.section(s);
  const uint32_t k = profile.heads() * profile.k_dim(), v = profile.heads() * profile.v_dim();
  for (uint32_t t = 0; t < tile.tokens; ++t) {
    const float* of_k = tile.k + size_t{t} * k;
    const float* of_v = tile.v + size_t{t} * v;
    const float k_norm = kernels::Dot(of_k, of_k, k), v_norm = kernels::Dot(of_v, of_v, v);
    if (tile.raw[t] || !std::isfinite(k_norm) || !std::isfinite(v_norm)) {
      levels[t] = kRawLevel;
      continue;
    }
    if (!profile.levels()) {
      levels[t] = 0;
      continue;
    }
    const float* w = section.level_weights.data();
    float octaves = kernels::Dot(w, of_k, k) + kernels::Dot(w + k, of_v, v);
    octaves = octaves + w[k + v] * kernels::RoughLog2(k_norm);
    octaves = octaves + w[k + v + 1] * kernels::RoughLog2(v_norm);
    octaves = octaves + w[k + v + 2];
    const float level = std::floor(octaves * 4.0f + 0.5f);
    levels[t] = static_cast<int8_t>(
        std::isnan(level) ? 0.0f : std::clamp(level, float{kLowestLevel}, float{kHighestLevel}));
  }
}

void EncodeTile(const SectionProfile& section, const std::vector<float>& inverse, int32_t lambda16,
                const EncodeInput& input, std::vector<uint8_t>* out) {
  std::vector<int16_t> quantised;
  Quantise(section, inverse, lambda16, input, &quantised);
  const TilePlan plan(section, lambda16, input.levels, input.tokens);
  Symbols s;
  MakeSymbols(plan, section.channels, input, quantised, &s);
  std::vector<uint8_t> stream(kernels::RansBound(plan.shape().rounds));
  kernels::RansSource source{s.symbols.data(), plan.schedule().data(), stream.data(), 0};
  const bool coded = kernels::RansEncode(*input.tables, plan.shape(), {&source, 1});
  assert(coded);  // what a table cannot code was escaped
  stream.resize(coded ? source.size : 0);
  const auto rans_bytes = static_cast<uint32_t>(stream.size());
  const auto escapes = static_cast<uint32_t>(s.escapes.size());
  Append(out, &rans_bytes, 1);
  Append(out, &escapes, 1);
  Append(out, stream.data(), stream.size());
  Append(out, s.planes.data(), s.planes.size());
  for (const auto& [place, q] : s.escapes) {
    Append(out, &place, 1);
    Append(out, &q, 1);
  }
  const size_t token_bytes = size_t{section.channels} * input.source_value_bytes;
  for (uint32_t t = 0; t < input.tokens; ++t) {
    if (input.levels[t] == kRawLevel) Append(out, input.source + t * token_bytes, token_bytes);
  }
}

}  // namespace terrace::codec
