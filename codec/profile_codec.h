// Codec 3: lossy, with a calibrated profile. Tiles: codec/tile_encoder.h. Blocking, CPU-bound; any
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/profile.h"
#include "codec/section_codec.h"

namespace terrace::codec {

// What an encoder of one profile needs and a decoder does not: the transforms' inverses. Immutable;
// share it. Seconds to make for a large joint transform.
class Encoder {
 public:
  // FailedPrecondition when a transform of the profile has no inverse.
  static absl::StatusOr<std::shared_ptr<const Encoder>> Make(
      std::shared_ptr<const Profile> profile);
  const std::shared_ptr<const Profile>& profile() const { return profile_; }
  // As InverseTransform.
  const std::vector<float>& inverse(uint32_t section) const { return inverses_[section]; }

  // sections[s]: the bytes of section s, shape.SectionBytes(s) long. 16 log2 of the step: lambda16;
  // the first raw_head and last raw_tail tokens are kept as they are. InvalidArgument for a dtype
  // other than float32, float16 and bfloat16; FailedPrecondition for another geometry.
  absl::StatusOr<std::vector<uint8_t>> Encode(const EncodeRequest& request) const;
  absl::StatusOr<std::vector<uint8_t>> Encode(const KvShape& shape, int32_t lambda16,
                                              uint32_t raw_head, uint32_t raw_tail,
                                              std::span<const uint8_t* const> sections) const;

 private:
  Encoder() = default;
  std::shared_ptr<const Profile> profile_;
  std::vector<std::vector<float>> inverses_;  // of each section
};

// For the registry. InvalidArgument without request.profile.
absl::StatusOr<std::vector<uint8_t>> EncodeWithProfile(const EncodeRequest& request);
absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenProfile(const DecodeSource& source);

}  // namespace terrace::codec
