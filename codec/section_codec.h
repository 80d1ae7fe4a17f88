// The interface that every codec of a container implements, and nothing else knows of a codec but
// the table in codec/registry.h. Pure functions of their input; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/container.h"
#include "codec/profile.h"

namespace terrace::codec {

class Encoder;  // codec/profile_codec.h

// What to encode. All but the first two fields are for codecs that need a profile; see
// Encoder::Encode.
struct EncodeRequest {
  KvShape shape;
  std::span<const uint8_t* const> sections;  // [s]: shape.SectionBytes(s) bytes
  const Encoder* profile = nullptr;
  int32_t lambda16 = 0;
  uint32_t raw_head = 0, raw_tail = 0;
  // Adds what makes the step a third, behind all else: cut off there, or anywhere behind, the
  // container decodes to what it holds.
  bool refined = false;
  // The profile's bytes, to go with the container, which then decodes without; else empty.
  std::span<const uint8_t> embed = {};
};

// Decodes the sections of one container. Immutable; threads may share it.
class SectionDecoder {
 public:
  virtual ~SectionDecoder() = default;
  // To `out`, as long as the section is. DataLoss naming section and tile; then nothing of `out`
  // is meant.
  virtual absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const = 0;
};

// What a decoder is made from; the bytes must outlive it.
struct DecodeSource {
  const ParsedChunk& chunk;
  std::span<const uint8_t> container;
  const std::shared_ptr<const Profile>& profile;  // null where the codec needs none
};

}  // namespace terrace::codec
