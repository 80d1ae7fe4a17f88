// A profile in the form that a GPU's kernels read (kernels/gpu_tile.h): one stretch of bytes, made
// on the host and copied to the GPU as it is, once a profile. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/profile.h"
#include "codec/profile_codec.h"
#include "kernels/gpu_tile.h"

namespace terrace::codec {

class GpuProfile {
 public:
  static constexpr size_t kAlignment = 16;

  // For decoding; with an encoder, for both.
  explicit GpuProfile(const Profile& profile) : GpuProfile(profile, nullptr) {}
  explicit GpuProfile(const Encoder& encoder) : GpuProfile(*encoder.profile(), &encoder) {}

  size_t size() const { return image_.size(); }
  // The bytes to be copied to `base`, an address on the GPU, a multiple of kAlignment.
  const std::vector<uint8_t>& ImageAt(const uint8_t* base);
  // Of the image at `base`.
  const kernels::GpuSection* SectionAt(const uint8_t* base, uint32_t s) const;
  const uint32_t* DecodeTablesAt(const uint8_t* base) const;
  const kernels::EncodeSymbol* EncodeTablesAt(const uint8_t* base) const;
  const uint64_t* FrequenciesAt(const uint8_t* base) const;
  // Of the section that has most: what scratch is measured by.
  uint32_t scratch_coefficients() const { return scratch_coefficients_; }

 private:
  // Where a section's arrays lie in the image.
  struct Offsets {
    size_t scale16, mean, row_scale, pieces, matrix;
    size_t inverse = 0, level_weights = 0;  // 0: none
  };
  GpuProfile(const Profile& profile, const Encoder* encoder);
  template <typename T>
  size_t Append(const T* values, size_t count);
  void AppendSection(const Profile& profile, const Encoder* encoder, uint32_t s);

  std::vector<uint8_t> image_;
  std::vector<kernels::GpuSection> sections_;
  std::vector<Offsets> offsets_;
  size_t decode_tables_ = 0, encode_tables_ = 0, frequencies_ = 0, descriptors_ = 0;
  uint32_t scratch_coefficients_ = 0;
};

}  // namespace terrace::codec
