// Codec 0: the KV as it is. Any thread.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

absl::StatusOr<std::vector<uint8_t>> EncodeRaw(const EncodeRequest& request);
absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenRaw(const DecodeSource& source);

}  // namespace terrace::codec
