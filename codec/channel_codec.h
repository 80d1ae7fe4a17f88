// Codec 2, lossless: each value's sign and exponent, with as much of its mantissa as pays, entropy
// coded with the table of its channel; the rest as it is. Its tables come with the chunk
// (codec/channel_tables.h). For any dtype. Exponents coded apart: ZipNN (arXiv:2411.05239),
// DFloat11 (arXiv:2504.11651); tables by class of channel and cells moved to the channel's scale
// are terrace's own. Blocking, CPU-bound; any thread.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

absl::StatusOr<std::vector<uint8_t>> EncodeChannels(const EncodeRequest& request);
absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenChannels(const DecodeSource& source);

}  // namespace terrace::codec
