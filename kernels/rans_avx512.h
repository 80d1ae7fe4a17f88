// The AVX-512 form of kernels/rans.h. Internal to kernels/.
#pragma once

#include "kernels/rans.h"

namespace terrace::kernels {

bool RansAvx512Supported();
size_t RansEncodeAvx512(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                        const uint8_t* symbols, uint8_t* out);
void RansDecodeAvx512(const RansTables& tables, const RansShape& shape, RansStream* streams,
                      size_t count);

}  // namespace terrace::kernels
