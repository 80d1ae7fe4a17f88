// Codec 4, zstd: the bytes of a tile, those of the same place in a value next to each other, each
// tile a frame of Zstandard (RFC 8878). For any dtype. Any thread.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

// ResourceExhausted when the library has no memory.
absl::StatusOr<std::vector<uint8_t>> EncodeZstd(const EncodeRequest& request);
absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenZstd(const DecodeSource& source);

}  // namespace terrace::codec
