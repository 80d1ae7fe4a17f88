// Not for use outside value_rows*.cc: for machines known to have the instructions.
#pragma once

#include "kernels/value_rows.h"

namespace terrace::kernels::value_rows {

void WriteAvx512(const HeadFormat& head, const int8_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset);
void WriteAvx512(const HeadFormat& head, const int16_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset);
void WriteAvx512(const HeadFormat& head, const int32_t* in, size_t row_stride,
                 std::span<const TokenPlace> tokens, size_t out_offset);

}  // namespace terrace::kernels::value_rows
