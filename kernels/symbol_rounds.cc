#include "kernels/symbol_rounds.h"

#include "kernels/symbol_rounds_simd.h"

namespace terrace::kernels {

void PackRoundsScalar(const RoundsToPack& rounds) {
  for (size_t c = 0; c < rounds.channels; ++c) {
    const size_t at = c * rounds.step;
    const RansTable& table = rounds.bank->tables[rounds.tables[at]];
    const uint32_t bits = rounds.low_bits[rounds.tables[at]], half = (1u << bits) >> 1;
    uint8_t* const symbols = rounds.symbols + at * kRansLanes;
    uint32_t escapes = 0;
    uint32_t planes[16] = {};
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      symbols[lane] = 0;
      if (lane >= rounds.lanes) continue;
      const int32_t biased = rounds.rows[lane][c] + static_cast<int32_t>(half);
      const int32_t symbol = (biased >> bits) + 15;
      if (symbol < 0 || symbol > 30 || table.gap[symbol] == kRansTotal) {
        symbols[lane] = 31;
        escapes |= 1u << lane;
        continue;
      }
      symbols[lane] = static_cast<uint8_t>(symbol);
      for (uint32_t b = 0; b < bits; ++b) planes[b] |= (biased >> b & 1u) << lane;
    }
    rounds.escapes[at] = escapes;
    for (uint32_t b = 0; b < bits; ++b) rounds.planes[rounds.plane_at[at] + b] = planes[b];
  }
}

void PackRounds(const RoundsToPack& rounds) {
#if defined(__x86_64__)
  static const bool avx512 = __builtin_cpu_supports("avx512f") &&
                             __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl");
  if (avx512) return symbol_rounds::PackAvx512(rounds);
#endif
  PackRoundsScalar(rounds);
}

}  // namespace terrace::kernels
