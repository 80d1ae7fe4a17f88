// Choosing tables: each channel's histogram in several ways of cutting its words into cells, and
// 64 tables found by k-means over those of a sample of channels, a table's cost being what it
// spends. Integers only, so that every machine makes the same tables.
#include <algorithm>
#include <bit>
#include <limits>
#include <tuple>

#include "codec/channel_tables.h"
#include "codec/value_words.h"

namespace terrace::codec {
namespace {

using kernels::kRansSymbols;
using kernels::kRansTotal;
using kernels::kWordEscape;

constexpr uint32_t kBit = 256;        // costs are in 1/256 bits
constexpr uint32_t kEscapeBits = 16;  // of the word itself
constexpr uint32_t kUncodable = 24;   // bits, where a table has no place for a symbol
constexpr size_t kKept = 8;           // cuts of a channel that are tried with every table
constexpr size_t kSampledChannels = 4096;
constexpr size_t kValuesATable = 8192;  // fewer do not pay for a table
constexpr int kRounds = 8;

// 256 log2(value), rounded down; value at least 1.
constexpr uint32_t Log2(uint32_t value) {
  const int whole = std::bit_width(value) - 1;
  uint64_t mantissa = (uint64_t{value} << 32) >> whole;  // 1 .. 2, times 2^32
  uint32_t log = static_cast<uint32_t>(whole);
  for (int bit = 0; bit < 8; ++bit) {
    mantissa = (mantissa >> 16) * (mantissa >> 16);
    const bool carry = mantissa >> 33 != 0;
    if (carry) mantissa >>= 1;
    log = log << 1 | (carry ? 1 : 0);
  }
  return log;
}

// Of counts.
constexpr auto kLog2 = [] {
  std::array<uint16_t, kMaxChunkTokens + 1> logs{};
  for (uint32_t i = 1; i < logs.size(); ++i) logs[i] = static_cast<uint16_t>(Log2(i));
  return logs;
}();

// Frequencies that sum to 256, at least 1 where the histogram is not 0: rounded down, then those
// raised or lowered that gain most or lose least.
std::array<uint16_t, kRansSymbols> Quantised(const std::array<uint64_t, kRansSymbols>& histogram) {
  std::array<uint16_t, kRansSymbols> frequency{};
  uint64_t total = 0;
  for (uint64_t count : histogram) total += count;
  if (total == 0) {
    frequency[0] = kRansTotal;
    return frequency;
  }
  uint32_t sum = 0;
  for (size_t s = 0; s < kRansSymbols; ++s) {
    if (histogram[s] == 0) continue;
    frequency[s] = static_cast<uint16_t>(std::max<uint64_t>(1, histogram[s] * kRansTotal / total));
    sum += frequency[s];
  }
  while (sum != kRansTotal) {
    const bool up = sum < kRansTotal;
    size_t best = kRansSymbols;
    uint64_t best_gain = 0;
    for (size_t s = 0; s < kRansSymbols; ++s) {
      const uint32_t f = frequency[s];
      if (f == 0 || (!up && f == 1)) continue;
      const uint64_t gain = histogram[s] * (up ? Log2(f + 1) - Log2(f) : Log2(f) - Log2(f - 1));
      if (best == kRansSymbols || (up ? gain > best_gain : gain < best_gain)) {
        best = s;
        best_gain = gain;
      }
    }
    frequency[best] = static_cast<uint16_t>(up ? frequency[best] + 1 : frequency[best] - 1);
    sum = up ? sum + 1 : sum - 1;
  }
  return frequency;
}

// One way of cutting a channel's words into cells.
struct Cut {
  SignForm sign = SignForm::kBit;
  uint8_t shift = 0;
  bool negative = false;
  uint16_t base = 0;
  uint32_t kept_bits = 0;
  std::array<int16_t, kRansSymbols> histogram{};  // at most kMaxChunkTokens in all
  uint64_t cost = 0;                              // with a table of its own

  std::pair<SignForm, uint8_t> mode() const { return {sign, shift}; }
};

// The words of one channel, counted in cells of several sizes.
class CellCounts {
 public:
  CellCounts(WordFormat format)
      : format_(format), finest_(std::max(format.floor, format.exponent - 4)) {
    for (uint32_t shift = finest_; shift <= format.exponent; ++shift) {
      for (auto& counts : levels_[shift - finest_]) {
        counts.resize((size_t{1} << (15 - shift)) + kRansSymbols);
      }
    }
  }

  // Every cut of these words, the cheapest first.
  std::vector<Cut> Cuts(const uint16_t* words, size_t count) {
    Count(words, count);
    std::vector<Cut> cuts;
    for (uint32_t shift = finest_; shift <= format_.exponent; ++shift) {
      const bool coarse = shift + 2 >= format_.exponent, finer = shift < format_.exponent;
      for (SignForm sign : {SignForm::kCoded, SignForm::kBit, SignForm::kFixed}) {
        if (sign == SignForm::kFixed ? !finer : !coarse) continue;
        const uint32_t width = sign == SignForm::kCoded ? 15 : 31;
        const uint32_t top = Top(shift - finest_, width, static_cast<uint32_t>(count));
        for (uint32_t end = top; end < top + 4; ++end) {
          cuts.push_back(CutOf(sign, shift, end, static_cast<uint32_t>(count)));
        }
      }
    }
    std::stable_sort(cuts.begin(), cuts.end(),
                     [](const Cut& a, const Cut& b) { return a.cost < b.cost; });
    return cuts;
  }

 private:
  void Count(const uint16_t* words, size_t count) {
    for (uint32_t k = 0; finest_ + k <= format_.exponent; ++k) {
      for (auto& counts : levels_[k]) std::fill_n(counts.begin(), (highest_ >> k) + 1, 0);
    }
    highest_ = 0;
    negatives_ = 0;
    for (size_t i = 0; i < count; ++i) {
      const bool negative = words[i] >> 15 != 0;
      const uint32_t cell = (words[i] & 0x7fffu) >> finest_;
      ++levels_[0][negative][cell];
      highest_ = std::max(highest_, cell);
      negatives_ += negative;
    }
    for (uint32_t k = 1; finest_ + k <= format_.exponent; ++k) {
      for (int sign = 0; sign < 2; ++sign) {
        const auto& fine = levels_[k - 1][sign];
        auto& counts = levels_[k][sign];
        for (uint32_t cell = 0; cell <= highest_ >> k; ++cell) {
          counts[cell] = static_cast<uint16_t>(fine[2 * cell] + fine[2 * cell + 1]);
        }
      }
    }
  }

  // The highest cell that is used; when few of the words are in the window below it, of the window
  // with the most.
  uint32_t Top(uint32_t k, uint32_t width, uint32_t count) const {
    const auto at = [&](uint32_t cell) { return levels_[k][0][cell] + levels_[k][1][cell]; };
    const uint32_t highest = highest_ >> k;
    uint32_t best = highest, within = 0;
    for (uint32_t i = 0; i < width && i <= highest; ++i) within += at(highest - i);
    if (within >= count - count / 64) return best;
    uint32_t most = 0;
    within = 0;
    for (uint32_t cell = 0; cell <= highest; ++cell) {
      within += at(cell) - (cell >= width ? at(cell - width) : 0);
      if (within > most) {
        most = within;
        best = cell;
      }
    }
    return best;
  }

  // With the cells below `end`.
  Cut CutOf(SignForm sign, uint32_t shift, uint32_t end, uint32_t count) const {
    const uint32_t k = shift - finest_, width = sign == SignForm::kCoded ? 15 : 31;
    Cut cut{.sign = sign, .shift = static_cast<uint8_t>(shift)};
    cut.base = static_cast<uint16_t>(end > width ? end - width : 0);
    cut.negative = sign == SignForm::kFixed && 2 * negatives_ > count;
    cut.kept_bits = shift - format_.floor + (sign == SignForm::kBit ? 1 : 0);
    uint32_t within = 0;
    for (uint32_t i = 0; i < width; ++i) {
      const uint16_t plus = levels_[k][0][cut.base + i], minus = levels_[k][1][cut.base + i];
      if (sign == SignForm::kCoded) {
        cut.histogram[i] = static_cast<int16_t>(plus);
        cut.histogram[width + i] = static_cast<int16_t>(minus);
        within += plus + minus;
      } else {
        const int of = sign == SignForm::kBit ? plus + minus : cut.negative ? minus : plus;
        cut.histogram[i] = static_cast<int16_t>(of);
        within += static_cast<uint32_t>(of);
      }
    }
    cut.histogram[kWordEscape] = static_cast<int16_t>(count - within);
    cut.cost = uint64_t{count} * (kBit * cut.kept_bits + kLog2[count]);
    for (int16_t h : cut.histogram) cut.cost -= static_cast<uint32_t>(h) * kLog2[h];
    cut.cost += uint64_t{kBit} * kEscapeBits * (count - within);
    return cut;
  }

  const WordFormat format_;
  const uint32_t finest_;
  std::array<std::array<std::vector<uint16_t>, 2>, 5> levels_;
  uint32_t highest_ = 0, negatives_ = 0;
};

// A table being found: what it spends on a symbol, and what its channels hold.
struct Cluster {
  SignForm sign = SignForm::kBit;
  uint8_t shift = 0;
  std::array<int16_t, kRansSymbols> cost{};
  std::array<uint64_t, kRansSymbols> histogram{};

  void Add(const Cut& cut) {
    for (size_t s = 0; s < kRansSymbols; ++s) histogram[s] += cut.histogram[s];
  }
  // Costs of what was added, which is forgotten; of nothing, they stay.
  void Settle() {
    if (std::all_of(histogram.begin(), histogram.end(), [](uint64_t h) { return h == 0; })) return;
    const auto frequency = Quantised(histogram);
    for (size_t s = 0; s < kRansSymbols; ++s) {
      cost[s] = static_cast<int16_t>(frequency[s] == 0 ? kBit * kUncodable
                                                       : 8 * kBit - Log2(frequency[s]));
    }
    cost[kWordEscape] = static_cast<int16_t>(cost[kWordEscape] + kBit * kEscapeBits);
    histogram.fill(0);
  }
};

// The cheapest pair of cut and cluster; null when no cluster cuts like that.
std::pair<const Cut*, size_t> Cheapest(std::span<const Cut> cuts,
                                       const std::vector<Cluster>& clusters, uint64_t count) {
  std::pair<const Cut*, size_t> best{nullptr, 0};
  uint64_t lowest = std::numeric_limits<uint64_t>::max();
  for (const Cut& cut : cuts) {
    for (size_t i = 0; i < clusters.size(); ++i) {
      if (clusters[i].sign != cut.sign || clusters[i].shift != cut.shift) continue;
      int32_t bits = 0;
      for (size_t s = 0; s < kRansSymbols; ++s) bits += cut.histogram[s] * clusters[i].cost[s];
      const uint64_t cost = static_cast<uint32_t>(bits) + count * kBit * cut.kept_bits;
      if (cost < lowest) {
        lowest = cost;
        best = {&cut, i};
      }
    }
  }
  return best;
}

// Clusters to start from: channels by the mode of their best cut and what it spends, cut into equal
// parts.
std::vector<Cluster> FirstClusters(std::vector<const Cut*> best, size_t count) {
  std::stable_sort(best.begin(), best.end(), [](const Cut* a, const Cut* b) {
    return std::tuple(a->sign, a->shift, a->cost) < std::tuple(b->sign, b->shift, b->cost);
  });
  std::vector<Cluster> clusters(std::min(count, best.size()));
  for (size_t i = 0; i < clusters.size(); ++i) {
    const size_t first = i * best.size() / clusters.size();
    const size_t end = (i + 1) * best.size() / clusters.size();
    const Cut& middle = *best[(first + end) / 2];
    clusters[i].sign = middle.sign;
    clusters[i].shift = middle.shift;
    for (size_t c = first; c < end; ++c) {
      if (best[c]->mode() == middle.mode()) clusters[i].Add(*best[c]);
    }
    clusters[i].Settle();
  }
  return clusters;
}

// Calls run(section, channel, words) for every step-th channel.
template <typename Run>
void ForChannels(const KvShape& shape, const std::vector<std::vector<uint16_t>>& words,
                 size_t stride, size_t step, Run run) {
  size_t index = 0;
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    for (uint32_t c = 0; c < shape.Channels(s); ++c) {
      if (index++ % step == 0) run(s, c, words[s].data() + c * stride);
    }
  }
}

}  // namespace

ChannelTables FitChannelTables(const KvShape& shape,
                               const std::vector<std::vector<uint16_t>>& words, size_t stride) {
  CellCounts counts(WordFormatOf(shape.dtype));
  size_t channels = 0;
  for (uint32_t s = 0; s < shape.Sections(); ++s) channels += shape.Channels(s);
  const size_t step = (channels + kSampledChannels - 1) / kSampledChannels;
  std::vector<std::vector<Cut>> sample;
  ForChannels(shape, words, stride, step, [&](uint32_t, uint32_t, const uint16_t* of) {
    sample.push_back(counts.Cuts(of, shape.tokens));
    sample.back().resize(kKept);
  });
  std::vector<const Cut*> best;
  for (const auto& cuts : sample) best.push_back(&cuts[0]);
  const size_t wanted = channels * shape.tokens / kValuesATable;
  std::vector<Cluster> clusters =
      FirstClusters(std::move(best), std::clamp<size_t>(wanted, 1, kernels::kRansTables));
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& cuts : sample) {
      const auto [cut, cluster] = Cheapest(cuts, clusters, shape.tokens);
      if (cut != nullptr) clusters[cluster].Add(*cut);
    }
    for (Cluster& cluster : clusters) cluster.Settle();
  }
  std::vector<std::vector<ChannelCode>> codes(shape.Sections());
  ForChannels(shape, words, stride, 1, [&](uint32_t s, uint32_t, const uint16_t* of) {
    const std::vector<Cut> cuts = counts.Cuts(of, shape.tokens);
    auto [cut, cluster] = Cheapest(std::span(cuts).first(kKept), clusters, shape.tokens);
    if (cut == nullptr) std::tie(cut, cluster) = Cheapest(cuts, clusters, shape.tokens);
    clusters[cluster].Add(*cut);
    codes[s].push_back({static_cast<uint8_t>(cluster), cut->negative, cut->base});
  });
  std::vector<ChannelTable> tables;
  for (const Cluster& cluster : clusters) {
    tables.push_back({cluster.sign, cluster.shift, Quantised(cluster.histogram)});
  }
  return ChannelTables(std::move(tables), std::move(codes));
}

}  // namespace terrace::codec
