// The refinement of codec 3: what lies below a coefficient's base, so that a container cut off
// behind its base is still whole, three times as coarse. docs/formats/chunk.md, "Refinement".
// Nested uniform quantisers of an odd ratio: Equitz and Cover, "Successive refinement of
// information" (IEEE Trans. Inf. Theory 37, 1991). Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rans.h"

namespace terrace::codec {

// A coefficient of the fine step is 3 base + digit, digit -1 .. 1. Its symbol is 15 plus the digit,
// turned round where the base is negative: towards zero is more likely.
constexpr int32_t BaseOf(int32_t fine) { return (fine + 1) / 3 - ((fine + 1) % 3 < 0); }

// Of a round whose base is coded with table t, t is the table here too.
const kernels::RansTables& RefinementTables();

// rows[i] = 3 rows[i] + the digit, digits[i] as the symbol says (-1 .. 1).
void RefineRows(const int8_t* digits, size_t count, int16_t* rows);

}  // namespace terrace::codec
