// The codecs that there are. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/section_codec.h"

namespace terrace::codec {

struct CodecEntry {
  CodecId id;
  std::string_view name;
  std::string_view summary;  // a line for people
  bool needs_profile;
  absl::StatusOr<std::vector<uint8_t>> (*encode)(const EncodeRequest&);
  // DataLoss when the header or what the codec keeps beside the sections is no encoder's;
  // FailedPrecondition when it was encoded with another profile.
  absl::StatusOr<std::unique_ptr<const SectionDecoder>> (*open)(const DecodeSource&);
};

// By ascending id.
std::span<const CodecEntry> Codecs();
// InvalidArgument, with those there are.
absl::StatusOr<const CodecEntry*> FindCodec(CodecId id);
absl::StatusOr<const CodecEntry*> FindCodec(std::string_view name);

}  // namespace terrace::codec
