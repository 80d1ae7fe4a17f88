#include "daemon/codec_choice.h"

#include <algorithm>
#include <tuple>

namespace terrace {
namespace {

constexpr double kFree = 1.02;  // times the best: no slower that anybody would notice

}  // namespace

double ExpectedSeconds(const CodecCost& cost, const LinkState& link, uint64_t bytes,
                       uint32_t layers) {
  const auto length = static_cast<double>(bytes);
  const double queued = static_cast<double>(link.queued_bytes) / link.read_bytes_per_s;
  const double reading = length * cost.ratio / link.read_bytes_per_s;
  if (cost.decode_bytes_per_s <= 0) return queued + reading;
  // Whichever is slower decides, plus one layer of the other before or after it.
  const double decoding = length / cost.decode_bytes_per_s / std::max(link.threads, 1u);
  const double one_layer = 1.0 / std::max(layers, 1u);
  return queued + std::max(reading + decoding * one_layer, decoding + reading * one_layer);
}

size_t ChooseCodec(std::span<const CodecCost> costs, const LinkState& link, uint64_t bytes,
                   uint32_t layers) {
  double best = ExpectedSeconds(costs[0], link, bytes, layers);
  for (const CodecCost& cost : costs) {
    best = std::min(best, ExpectedSeconds(cost, link, bytes, layers));
  }
  const auto rank = [&](const CodecCost& cost) {
    const bool free = ExpectedSeconds(cost, link, bytes, layers) <= best * kFree;
    return std::make_tuple(!free, !cost.lossless, cost.ratio);
  };
  return static_cast<size_t>(
      std::min_element(costs.begin(), costs.end(),
                       [&](const CodecCost& a, const CodecCost& b) { return rank(a) < rank(b); }) -
      costs.begin());
}

}  // namespace terrace
