// Not for use outside symbol_rounds*.cc: for machines known to have the instructions.
#pragma once

#include "kernels/symbol_rounds.h"

namespace terrace::kernels::symbol_rounds {

void PackAvx512(const RoundsToPack& rounds);

}  // namespace terrace::kernels::symbol_rounds
