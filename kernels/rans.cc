#include "kernels/rans.h"

#include <algorithm>

#include "kernels/rans_lockstep.h"

namespace terrace::kernels {

namespace {

// The forms for byte shuffles, from gap, start and reciprocal.
void FillByteForms(RansTable* table) {
  const auto bias = [](uint32_t start) {
    return static_cast<uint8_t>((std::max(start, 1u) - 1) ^ 0x80);
  };
  table->tree[0] = 0;
  for (size_t level = 1; level < kRansSymbols; level *= 2) {
    const size_t width = kRansSymbols / level;
    for (size_t node = 0; node < level; ++node) {
      table->tree[level + node] = bias(table->start[node * width + width / 2]);
    }
  }
  for (size_t symbol = 0; symbol < kRansSymbols; ++symbol) {
    table->gap8[symbol] = static_cast<uint8_t>(table->gap[symbol]);
    table->start8[symbol] = static_cast<uint8_t>(table->start[symbol]);
    table->reciprocal_low[symbol] = static_cast<uint8_t>(table->reciprocal[symbol]);
    table->reciprocal_high[symbol] = static_cast<uint8_t>(table->reciprocal[symbol] >> 8);
    table->leaf_start[symbol % 2][symbol / 2] = table->start8[symbol];
    table->leaf_gap[symbol % 2][symbol / 2] = table->gap8[symbol];
  }
  // Slot 0 ends at leaf 0, whichever symbol is the first. No other slot does if that is not 0.
  table->first_symbol = table->slot_to_symbol[0];
  table->leaf_gap[0][0] = table->gap8[table->first_symbol];
}

}  // namespace

RansTables::RansTables() {
  const uint16_t only_zero[kRansSymbols] = {kRansTotal};
  for (size_t id = 0; id < kRansTables; ++id) RansBuildTable(this, id, only_zero);
}

bool RansBuildTable(RansTables* bank, size_t id, const uint16_t frequency[kRansSymbols]) {
  uint32_t total = 0;
  for (size_t symbol = 0; symbol < kRansSymbols; ++symbol) total += frequency[symbol];
  if (total != kRansTotal || id >= kRansTables) return false;
  RansTable* table = &bank->tables[id];
  uint32_t start = 0;
  for (size_t symbol = 0; symbol < kRansSymbols; ++symbol) {
    const uint32_t width = frequency[symbol];
    table->gap[symbol] = static_cast<uint16_t>(kRansTotal - width);
    table->start[symbol] = static_cast<uint16_t>(start);
    table->reciprocal[symbol] =
        width == 0 ? 0 : static_cast<uint16_t>(std::min(65535u, 65536u / width));
    std::fill_n(table->slot_to_symbol + start, width, static_cast<uint8_t>(symbol));
    start += width;
  }
  FillByteForms(table);
  return true;
}

// The states, a byte a symbol, and what the implementations write past the last byte.
size_t RansBound(size_t rounds) { return 2 * kRansLanes + rounds * kRansLanes + 64; }

#if defined(__x86_64__)

namespace {

enum class Isa { kScalar, kAvx2, kAvx512 };

Isa DetectIsa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt")) return Isa::kScalar;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vbmi2")) {
    return Isa::kAvx512;
  }
  return Isa::kAvx2;
}
const Isa kIsa = DetectIsa();

}  // namespace

bool RansEncode(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  return RansEncodeAvx512(bank, shape, sources);
}

bool RansDecode(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams) {
  return RansDecodeAvx512(bank, shape, streams);
}

bool RansEncodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  return kIsa >= Isa::kAvx2 ? rans::EncodeAvx2(bank, shape, sources)
                            : RansEncodeScalar(bank, shape, sources);
}

bool RansDecodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams) {
  return kIsa >= Isa::kAvx2 ? rans::DecodeAll(rans::DecodeRoundsAvx2, bank, shape, streams)
                            : RansDecodeScalar(bank, shape, streams);
}

bool RansEncodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansSource> sources) {
  return kIsa >= Isa::kAvx512 ? rans::EncodeAvx512(bank, shape, sources)
                              : RansEncodeAvx2(bank, shape, sources);
}

bool RansDecodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansStream> streams) {
  return kIsa >= Isa::kAvx512 ? rans::DecodeAll(rans::DecodeRoundsAvx512, bank, shape, streams)
                              : RansDecodeAvx2(bank, shape, streams);
}

rans::DecodeRounds rans::FastestDecodeRounds() {
  return kIsa == Isa::kAvx512 ? DecodeRoundsAvx512
         : kIsa == Isa::kAvx2 ? DecodeRoundsAvx2
                              : DecodeRoundsScalar;
}

const char* RansImplementation() {
  switch (kIsa) {
    case Isa::kAvx512:
      return "avx512-vbmi2";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

#else

bool RansEncode(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  return RansEncodeScalar(bank, shape, sources);
}
bool RansDecode(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams) {
  return RansDecodeScalar(bank, shape, streams);
}
bool RansEncodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  return RansEncodeScalar(bank, shape, sources);
}
bool RansDecodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams) {
  return RansDecodeScalar(bank, shape, streams);
}
bool RansEncodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansSource> sources) {
  return RansEncodeScalar(bank, shape, sources);
}
bool RansDecodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansStream> streams) {
  return RansDecodeScalar(bank, shape, streams);
}
rans::DecodeRounds rans::FastestDecodeRounds() { return DecodeRoundsScalar; }
const char* RansImplementation() { return "scalar"; }

#endif

}  // namespace terrace::kernels
