// Codec 1, lossless-fast: bfloat16 with its exponents as nibbles (kernels/exponent_nibbles.h), 12
// bits a value and little work. Values of other dtypes, and tiles that would not become smaller,
// are kept as they are. Any thread.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

absl::StatusOr<std::vector<uint8_t>> EncodeNibbles(const EncodeRequest& request);
absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenNibbles(const DecodeSource& source);

}  // namespace terrace::codec
