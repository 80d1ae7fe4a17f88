// Encodes the KV of one chunk into a container and back, whole or a section at a time. Pure
// functions of their input: the same bytes on every machine. Blocking, CPU-bound; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/container.h"
#include "codec/profile.h"
#include "codec/profile_codec.h"
#include "codec/registry.h"

namespace terrace::codec {

// A container of the KV. InvalidArgument when there is no such codec, or it cannot encode this.
absl::StatusOr<std::vector<uint8_t>> Encode(std::string_view codec, const EncodeRequest& request);

// Reads one container, which must stay where it is. Sections may be decoded by several threads at
// once.
class Decoder {
 public:
  // `profile` may be null where the codec needs none. Errors of ParseHeader; FailedPrecondition
  // when it was encoded with another profile; DataLoss when it says what no encoder says.
  static absl::StatusOr<Decoder> Make(std::span<const uint8_t> container,
                                      std::shared_ptr<const Profile> profile);
  const ChunkHeader& header() const { return chunk_.header; }

  // Decodes a section to `out` (shape.SectionBytes(section)). DataLoss naming the section and the
  // tile; then nothing of `out` is meant.
  absl::Status Section(uint32_t section, uint8_t* out) const;

 private:
  Decoder() = default;

  std::span<const uint8_t> container_;
  ParsedChunk chunk_;
  std::unique_ptr<const SectionDecoder> sections_;
};

}  // namespace terrace::codec
