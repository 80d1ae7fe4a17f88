#include "codec/refinement.h"

#include <array>
#include <memory>

#include "codec/profile.h"
#include "kernels/clones.h"

namespace terrace::codec {
namespace {

// Of 256: digits towards zero, and away from it. Of Laplacian coefficients, whose standard
// deviation is 2^((t - 20) / 4) base steps.
struct Shares {
  uint8_t towards, away;
};
constexpr Shares kShares[] = {
    {1, 1},   {1, 1},    {1, 1},    {1, 1},    {3, 3},    {5, 5},   {9, 9},   {14, 13}, {20, 19},
    {27, 25}, {36, 31},  {45, 37},  {55, 43},  {65, 47},  {74, 50}, {83, 53}, {89, 55}, {94, 57},
    {98, 59}, {100, 60}, {101, 62}, {101, 64}, {100, 66}, {99, 68}, {98, 70}, {97, 72}, {96, 74},
    {95, 75}, {93, 77},  {92, 78},  {91, 79},  {91, 80},  {90, 81}, {89, 81}, {89, 82}, {88, 82},
    {88, 83}, {87, 83},  {87, 84},  {87, 84},  {87, 84},  {86, 84}, {86, 84}, {86, 85}};
constexpr Shares kEven = {85, 85};  // of the tables after those

}  // namespace

const kernels::RansTables& RefinementTables() {
  static const std::unique_ptr<const kernels::RansTables> tables = [] {
    auto bank = std::make_unique<kernels::RansTables>();
    for (size_t t = 0; t < kScaleTables; ++t) {
      const Shares of = t < std::size(kShares) ? kShares[t] : kEven;
      std::array<uint16_t, kernels::kRansSymbols> frequencies{};
      frequencies[14] = of.towards;
      frequencies[15] = static_cast<uint16_t>(kernels::kRansTotal - of.towards - of.away);
      frequencies[16] = of.away;
      kernels::RansBuildTable(bank.get(), t, frequencies.data());
    }
    return bank;
  }();
  return *tables;
}

TERRACE_CLONES
void RefineRows(const int8_t* digits, size_t count, int16_t* rows) {
  for (size_t i = 0; i < count; ++i) {
    const int16_t base = rows[i], digit = digits[i];
    rows[i] = static_cast<int16_t>(3 * base + (base < 0 ? -digit : digit));
  }
}

}  // namespace terrace::codec
