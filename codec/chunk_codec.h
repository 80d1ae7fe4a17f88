// Encodes the KV of one chunk into a container and back, whole or a section at a time. Pure
// functions of their input: the same bytes on every machine. Blocking, CPU-bound; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/container.h"
#include "codec/profile.h"

namespace terrace::codec {

// What an encoder of one profile needs and a decoder does not: the transforms' inverses. Immutable;
// share it. Seconds to make for a large joint transform.
class Encoder {
 public:
  // FailedPrecondition when a transform of the profile has no inverse.
  static absl::StatusOr<std::shared_ptr<const Encoder>> Make(
      std::shared_ptr<const Profile> profile);
  const std::shared_ptr<const Profile>& profile() const { return profile_; }

  // sections[s]: the bytes of section s, shape.SectionBytes(s) long. 16 log2 of the step: lambda16;
  // the first raw_head and last raw_tail tokens are kept as they are. InvalidArgument for a dtype
  // other than float32, float16 and bfloat16; FailedPrecondition for another geometry.
  absl::StatusOr<std::vector<uint8_t>> Encode(const KvShape& shape, int32_t lambda16,
                                              uint32_t raw_head, uint32_t raw_tail,
                                              std::span<const uint8_t* const> sections) const;

 private:
  Encoder() = default;
  std::shared_ptr<const Profile> profile_;
  std::vector<std::vector<float>> inverses_;  // of each section
};

// A container of the KV as it is.
std::vector<uint8_t> EncodeRaw(const KvShape& shape, std::span<const uint8_t* const> sections);

// Reads one container, which must stay where it is. Sections may be decoded by several threads at
// once.
class Decoder {
 public:
  // `profile` may be null for raw containers. Errors of ParseHeader; FailedPrecondition when it was
  // encoded with another profile; DataLoss when it says what no encoder says.
  static absl::StatusOr<Decoder> Make(std::span<const uint8_t> container,
                                      std::shared_ptr<const Profile> profile);
  const ChunkHeader& header() const { return chunk_.header; }

  // Decodes a section to `out` (shape.SectionBytes(section)). DataLoss naming the section and the
  // tile; then nothing of `out` is meant.
  absl::Status Section(uint32_t section, uint8_t* out) const;

 private:
  Decoder() = default;
  absl::Status Tiles(uint32_t section, std::span<const std::span<const uint8_t>> tiles,
                     uint32_t first, uint8_t* out) const;
  void WriteTile(uint32_t section, uint32_t tile, class TileDecoder& decoder, uint8_t* out) const;

  std::span<const uint8_t> container_;
  ParsedChunk chunk_;
  std::shared_ptr<const Profile> profile_;
  std::vector<kernels::Turn> turns_;  // of every position, when keys are rotated
};

}  // namespace terrace::codec
