#include "codec/default_profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "codec/kv_rows.h"
#include "codec/position_turns.h"
#include "codec/profile.h"
#include "codec/symmetric_eigen.h"
#include "codec/tile_plan.h"
#include "kernels/checksum.h"
#include "kernels/tile_math.h"
#include "kernels/tile_rounds.h"

namespace terrace::codec {
namespace {

// Measured on SmolLM2-135M against Fisher matrices (docs/results/2026-11-codec.md); what they say
// holds of any model for the reason in the header.
constexpr double kKeyOctaves = 0.75;  // of a channel's weight, for an octave of its deviation
constexpr double kValueOctaves = 0.4;
// Of the only model it was tried on, SmolLM2-135M: the worse of profiles of two chunks
// (docs/results/2026-11-codec.md). The steps are relative to the KV's own scale.
constexpr std::array<OperatingPoint, 2> kTurnedBack = {
    {{-18, 3.62f, 0.0051f}, {-12, 3.24f, 0.0090f}}};
constexpr std::array<OperatingPoint, 2> kLeftRotated = {
    {{-18, 4.37f, 0.0072f}, {-12, 3.96f, 0.0092f}}};

constexpr double kKeyStep = 1.2;  // of a key over the deviation of the section's channels
constexpr double kValueStep = 0.84;
constexpr double kOctavesPerDeviation = 0.3;  // of precision, by how a key lies to the mean key
constexpr int32_t kSlope = 128;               // tokens of high precision lie closer to the mean
constexpr double kLeast = 1.0 / 64;  // deviation of a channel over the section's, at the least

constexpr double kRare = 2e-5;  // share of a symbol that a table may do without

// Tokens by channels.
struct Rows {
  uint32_t channels = 0;
  std::vector<float> values;

  size_t tokens() const { return values.size() / channels; }
  const float* token(size_t t) const { return values.data() + t * channels; }
};

class Bytes {
 public:
  template <typename T>
  void Put(T value) {
    const auto* from = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof value);
  }
  void Text(std::string_view text, size_t size) {
    const size_t end = bytes_.size() + size;
    bytes_.insert(bytes_.end(), text.begin(), text.begin() + std::min(size, text.size()));
    bytes_.resize(end);
  }
  // Length and checksum, at the end.
  std::vector<uint8_t> Seal() && {
    const uint64_t size = bytes_.size();
    std::memcpy(bytes_.data() + 16, &size, sizeof size);
    const uint32_t crc = kernels::Crc32c(bytes_.data(), bytes_.size());
    std::memcpy(bytes_.data() + 12, &crc, sizeof crc);
    return std::move(bytes_);
  }

 private:
  std::vector<uint8_t> bytes_;
};

absl::Status Bad(absl::string_view field, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat("default profile: ", field, " must be ", range));
}

absl::Status Check(const KvShape& shape, const DefaultRope& rope, std::string_view model_id) {
  const bool rotates = rope.pairing != kernels::RopePairing::kNone;
  if (!HasRows(shape.dtype)) return Bad("dtype", "float32, float16 or bfloat16");
  if (shape.heads * std::max(shape.k_dim, shape.v_dim) > kMaxChannels) {
    return Bad("kv_heads times the larger of k_dim and v_dim", "1 .. 16384");
  }
  if (rope.rotary_dim > shape.k_dim || rope.rotary_dim % 2 != 0 ||
      rotates != (rope.rotary_dim != 0)) {
    return Bad("rotary_dim", "even, at most k_dim, and 0 only without pairing");
  }
  if (rotates && !(rope.theta > 1 && rope.theta <= 1e12)) return Bad("theta", "above 1, to 1e12");
  if (model_id.size() > kMaxModelIdBytes) return Bad("length of model_id", "0 .. 512");
  return absl::OkStatus();
}

double Power(double base, uint32_t exponent) {
  double product = 1;
  for (uint32_t i = 0; i < exponent; ++i) product *= base;
  return product;
}

// Turns a position x 2^64, of multiplications alone: pow() is not the same everywhere.
std::vector<uint64_t> FrequenciesOf(const DefaultRope& rope) {
  const uint32_t pairs = rope.rotary_dim / 2;
  double low = 1, high = rope.theta;  // around theta^(1 / pairs)
  for (int halvings = 0; halvings < 100 && pairs != 0; ++halvings) {
    const double middle = low + (high - low) / 2;
    (Power(middle, pairs) < rope.theta ? low : high) = middle;
  }
  std::vector<uint64_t> frequencies(pairs);
  for (uint32_t i = 0; i < pairs; ++i) {
    constexpr double kPerRadian = 2935890503282001226.5;  // 2^64 / (2 pi)
    frequencies[i] = static_cast<uint64_t>(kPerRadian / Power(low, i));
  }
  return frequencies;
}

// Both sections of a layer, keys turned back; without the first tokens and those of values that are
// not finite.
std::array<Rows, 2> ReadLayer(const KvShape& shape, const DefaultRope& rope,
                              const PositionTurns& turns, uint32_t layer,
                              std::span<const uint8_t* const> sections) {
  std::array<Rows, 2> rows;
  std::array<std::vector<float>, 2> row;
  for (uint32_t part = 0; part < 2; ++part) {
    rows[part].channels = shape.Channels(2 * layer + part);
    row[part].resize(rows[part].channels);
  }
  for (uint32_t t = kDefaultProfileSkips; t < shape.tokens; ++t) {
    bool finite = true;
    for (uint32_t part = 0; part < 2; ++part) {
      const uint32_t s = 2 * layer + part;
      ReadRow(shape, s, sections[s], t, row[part].data());
      const float* values = row[part].data();
      finite &= std::isfinite(kernels::SumRow(values, values, values, row[part].size()).squares);
    }
    if (!finite) continue;
    if (rope.rotary_dim != 0) {
      kernels::Rotate(row[0].data(), shape.heads, shape.k_dim, rope.rotary_dim, rope.pairing,
                      turns.At(t), true);
    }
    for (uint32_t part = 0; part < 2; ++part) {
      rows[part].values.insert(rows[part].values.end(), row[part].begin(), row[part].end());
    }
  }
  return rows;
}

std::vector<double> MeanOf(const Rows& rows) {
  std::vector<double> mean(rows.channels);
  for (size_t t = 0; t < rows.tokens(); ++t) {
    for (uint32_t c = 0; c < rows.channels; ++c) mean[c] += rows.token(t)[c];
  }
  for (double& m : mean) m /= static_cast<double>(rows.tokens());
  return mean;
}

// Weights of K channels, V channels, log norms and 1 that give a token's octaves of precision:
// minus its key's product with the mean key, in standard deviations, times kOctavesPerDeviation.
std::vector<float> LevelWeights(const Rows& keys, const std::vector<double>& mean_key,
                                uint32_t value_channels) {
  double sum = 0, squares = 0;
  for (size_t t = 0; t < keys.tokens(); ++t) {
    double product = 0;
    for (uint32_t c = 0; c < keys.channels; ++c) product += mean_key[c] * keys.token(t)[c];
    sum += product;
    squares += product * product;
  }
  const auto count = static_cast<double>(keys.tokens());
  const double mean = sum / count;
  const double deviation = std::sqrt(std::max(squares / count - mean * mean, 0.0));
  // Keys without a mean, or all alike, say nothing of their tokens.
  const bool speaks = deviation > std::max(1e-6 * std::abs(mean), 1e-30);
  const double scale = speaks ? kOctavesPerDeviation / deviation : 0;
  std::vector<float> weights(keys.channels + value_channels + 3);
  for (uint32_t c = 0; c < keys.channels; ++c) {
    weights[c] = static_cast<float>(-scale * mean_key[c]);
  }
  weights.back() = static_cast<float>(scale * mean);
  return weights;
}

// [head][dim][dim]: covariance of each head's channels.
std::vector<double> Covariances(const Rows& rows, const std::vector<double>& mean, uint32_t dim) {
  const uint32_t heads = rows.channels / dim;
  std::vector<double> covariances(size_t{rows.channels} * dim), centred(rows.channels);
  for (size_t t = 0; t < rows.tokens(); ++t) {
    for (uint32_t c = 0; c < rows.channels; ++c) centred[c] = rows.token(t)[c] - mean[c];
    for (uint32_t h = 0; h < heads; ++h) {
      const double* x = centred.data() + size_t{h} * dim;
      double* out = covariances.data() + size_t{h} * dim * dim;
      for (uint32_t i = 0; i < dim; ++i) {
        for (uint32_t j = 0; j < dim; ++j) out[i * dim + j] += x[i] * x[j];
      }
    }
  }
  for (double& c : covariances) c /= static_cast<double>(rows.tokens());
  return covariances;
}

// 16 log2, rounded.
int32_t Sixteenths(double value) {
  int exponent;
  std::frexp(value, &exponent);
  int32_t sixteenths = 16 * (exponent - 1);
  // A step further while the middle to it is not above the value: 2^(1/32) is the constant.
  while (double{PowerOf16th(sixteenths)} * 1.0218971486541166 <= value) ++sixteenths;
  return sixteenths;
}

// x^octaves, of a ratio, by its 16 log2: the same on every machine.
double PowerOf(double ratio, double octaves) {
  return PowerOf16th(static_cast<int32_t>(std::nearbyint(octaves * Sixteenths(ratio))));
}

// The other channel of its pair, in a head, or itself.
uint32_t PairOf(const DefaultRope& rope, uint32_t i) {
  if (i >= rope.rotary_dim) return i;
  if (rope.pairing == kernels::RopePairing::kInterleaved) return i ^ 1;
  const uint32_t half = rope.rotary_dim / 2;
  return i < half ? i + half : i - half;
}

// Of each channel of one section: its step at lambda 1.
std::vector<double> StepsOf(const std::vector<double>& covariances, uint32_t dim, bool key,
                            const DefaultRope& rope) {
  const size_t channels = covariances.size() / dim;
  const auto variance = [&](size_t c) { return covariances[c * dim + c % dim]; };
  double all = 0;
  for (size_t c = 0; c < channels; ++c) all += variance(c);
  const double section = std::sqrt(std::max(all / static_cast<double>(channels), 1e-30));
  std::vector<double> steps(channels);
  for (size_t c = 0; c < channels; ++c) {
    const auto i = static_cast<uint32_t>(c % dim);
    const size_t other = key ? c - i + PairOf(rope, i) : c;
    const double deviation = std::sqrt((variance(c) + variance(other)) / 2);
    const double ratio = std::max(deviation / section, kLeast);
    steps[c] = section * (key ? kKeyStep / PowerOf(ratio, kKeyOctaves)
                              : kValueStep / PowerOf(ratio, kValueOctaves));
  }
  return steps;
}

// Frequencies that sum to 256: from the shares rounded down, one more or less where the code length
// gains most or loses least. At least 1 for what is not all but impossible, since an escape costs
// 48 bits, and for those of `always`.
std::array<uint16_t, 32> Frequencies(const std::array<double, 32>& shares, uint32_t always) {
  std::array<uint16_t, 32> frequencies;
  int left = 256;
  for (uint32_t s = 0; s < 32; ++s) {
    const auto whole = static_cast<uint16_t>(256 * shares[s]);
    frequencies[s] = std::max<uint16_t>(whole, shares[s] > kRare || (always >> s & 1) != 0);
    left -= frequencies[s];
  }
  while (left != 0) {
    uint32_t best = 15;
    double most = -1e300;
    for (uint32_t s = 0; s < 32; ++s) {
      if (frequencies[s] < (left > 0 ? 1 : 2)) continue;
      const double gain =
          left > 0 ? shares[s] / (frequencies[s] + 0.5) : -shares[s] / (frequencies[s] - 0.5);
      if (gain > most) most = gain, best = s;
    }
    frequencies[best] = static_cast<uint16_t>(frequencies[best] + (left > 0 ? 1 : -1));
    left -= left > 0 ? 1 : -1;
  }
  return frequencies;
}

// e^-x for x >= 0, of multiplications and additions.
double ExpOfMinus(double x) {
  int halvings = 0;
  for (; x > 0.125; x /= 2) ++halvings;
  double sum = 1;
  for (int n = 12; n > 0; --n) sum = 1 - x / n * sum;
  for (; halvings > 0; --halvings) sum *= sum;
  return sum;
}

// Symbols of coefficients whose deviation was measured on other texts: four fifths of them logistic
// and a little smaller, a fifth Laplacian and almost twice as large.
std::array<uint16_t, 32> ScaleTable(uint32_t table) {
  const int scale = static_cast<int>(table) + kernels::kSmallestScale;
  const int low_bits = scale >= 8 ? scale / 4 - 1 : 0;
  constexpr double kLogistic = 1.8137993642342178 / 0.85;  // pi / sqrt(3): its unit, of a deviation
  constexpr double kLaplacian = 1.4142135623730951 / 1.8;  // sqrt(2)
  const double deviation = PowerOf16th(4 * scale - 16 * low_bits);
  const auto above = [&](double x) {  // the share above x >= 0
    const double e = ExpOfMinus(std::min(x * kLogistic / deviation, 700.0));
    return 0.8 * e / (1 + e) + 0.1 * ExpOfMinus(std::min(x * kLaplacian / deviation, 700.0));
  };
  std::array<double, 32> shares{};
  for (int s = 1; s <= 15; ++s) shares[15 + s] = shares[15 - s] = above(s - 0.5) - above(s + 0.5);
  shares[15] = 1 - 2 * above(0.5);
  shares[31] = 2 * above(15.5);
  return Frequencies(shares, 1u << 15 | 1u << 31);
}

// Levels have the deviation of 4 kOctavesPerDeviation quarter octaves; raw tokens are rare.
std::array<uint16_t, 32> LevelTable() {
  std::array<double, 32> shares{};
  double sum = 0;
  for (int s = 0; s < 32; ++s) {
    sum += shares[s] =
        ExpOfMinus((s - 16) * (s - 16) / (2 * 16 * kOctavesPerDeviation * kOctavesPerDeviation));
  }
  for (double& share : shares) share /= sum;
  return Frequencies(shares, ~0u);
}

void PutTables(Bytes* out) {
  for (uint32_t t = 0; t < kTables; ++t) {
    std::array<uint16_t, 32> frequencies;
    frequencies.fill(8);
    if (t < kScaleTables) frequencies = ScaleTable(t);
    if (t == kLevelTable) frequencies = LevelTable();
    for (uint16_t frequency : frequencies) out->Put(frequency);
  }
}

// One head's [coefficient][channel]: what a unit of each coefficient is in each channel.
void PutMatrix(const std::vector<double>& decode, const std::vector<float>& row_scale,
               uint32_t first, uint32_t dim, Bytes* out) {
  for (uint32_t k = 0; k < dim; ++k) {
    for (uint32_t j = 0; j < dim; ++j) {
      const double whole = std::nearbyint(decode[k * dim + j] / row_scale[first + j]);
      out->Put(static_cast<int16_t>(std::clamp(whole, -32767.0, 32767.0)));
    }
  }
}

void PutSection(const Rows& rows, const std::vector<double>& mean, uint32_t dim, bool key,
                const DefaultRope& rope, const std::vector<float>& level_weights, Bytes* out) {
  std::vector<double> covariances = Covariances(rows, mean, dim);
  const std::vector<double> steps = StepsOf(covariances, dim, key, rope);
  const uint32_t heads = rows.channels / dim;
  std::vector<int16_t> scale16;
  std::vector<float> row_scale;
  std::vector<std::vector<double>> decodes;
  for (uint32_t h = 0; h < heads; ++h) {
    double* matrix = covariances.data() + size_t{h} * dim * dim;
    const double* step = steps.data() + size_t{h} * dim;
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j) matrix[i * dim + j] /= step[i] * step[j];
    }
    SymmetricEigen eigen = DecomposeSymmetric({matrix, size_t{dim} * dim}, dim);
    for (double variance : eigen.values) {
      scale16.push_back(static_cast<int16_t>(Sixteenths(std::sqrt(std::max(variance, 1e-8)))));
    }
    for (uint32_t k = 0; k < dim; ++k) {
      for (uint32_t j = 0; j < dim; ++j) eigen.vectors[k * dim + j] *= step[j];
    }
    for (uint32_t j = 0; j < dim; ++j) {
      double largest = 0;
      for (uint32_t k = 0; k < dim; ++k) {
        largest = std::max(largest, std::abs(eigen.vectors[k * dim + j]));
      }
      row_scale.push_back(static_cast<float>(std::max(largest / 32767, 1e-30)));
    }
    decodes.push_back(std::move(eigen.vectors));
  }
  for (int16_t scale : scale16) out->Put(scale);
  for (double m : mean) out->Put(static_cast<float>(m));
  for (float scale : row_scale) out->Put(scale);
  for (uint32_t h = 0; h < heads; ++h) PutMatrix(decodes[h], row_scale, h * dim, dim, out);
  out->Put(kSlope);
  for (float weight : level_weights) out->Put(weight);
}

void PutHeader(const KvShape& shape, const DefaultRope& rope, std::string_view model_id,
               Bytes* out) {
  out->Text("TKVPROF1", 8);
  out->Put(uint16_t{1});
  out->Put(uint16_t{0});
  out->Put(uint32_t{0});  // checksum and length: Seal()
  out->Put(uint64_t{0});
  out->Put(static_cast<uint8_t>(Transform::kHead));
  out->Put(static_cast<uint8_t>(rope.pairing));
  out->Put(static_cast<uint16_t>(rope.rotary_dim));
  for (uint32_t field : {shape.layers, shape.heads, shape.k_dim, shape.v_dim}) out->Put(field);
  out->Put(uint8_t{1});  // levels
  const auto& points = rope.pairing == kernels::RopePairing::kNone ? kLeftRotated : kTurnedBack;
  out->Put(static_cast<uint8_t>(points.size()));
  out->Put(static_cast<uint16_t>(model_id.size()));
  out->Text("default", 80);
  out->Text(model_id, model_id.size());
  for (const OperatingPoint& point : points) {
    out->Put(point.lambda16);
    out->Put(point.bits_per_value);
    out->Put(point.mean_kl);
  }
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> MakeDefaultProfile(const KvShape& shape,
                                                        const DefaultRope& rope,
                                                        std::span<const uint8_t* const> sections,
                                                        std::string_view model_id) {
  if (absl::Status status = Check(shape, rope, model_id); !status.ok()) return status;
  const std::vector<uint64_t> frequencies = FrequenciesOf(rope);
  const PositionTurns turns(frequencies, shape);
  Bytes out;
  PutHeader(shape, rope, model_id, &out);
  for (uint64_t frequency : frequencies) out.Put(frequency);
  PutTables(&out);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    const std::array<Rows, 2> rows = ReadLayer(shape, rope, turns, layer, sections);
    if (rows[0].tokens() < kDefaultProfileTokens) {
      return Bad(absl::StrCat("tokens of finite values after the first ", kDefaultProfileSkips),
                 absl::StrCat("at least ", kDefaultProfileTokens, "; layer ", layer, " has ",
                              rows[0].tokens()));
    }
    const std::vector<double> means[2] = {MeanOf(rows[0]), MeanOf(rows[1])};
    const std::vector<float> weights = LevelWeights(rows[0], means[0], rows[1].channels);
    PutSection(rows[0], means[0], shape.k_dim, true, rope, weights, &out);
    PutSection(rows[1], means[1], shape.v_dim, false, rope, weights, &out);
  }
  return std::move(out).Seal();
}

}  // namespace terrace::codec
