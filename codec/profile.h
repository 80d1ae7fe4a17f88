// A calibrated profile: what is known of one model's KV before any of it is seen. Made once per
// model by `terrace calibrate`; named by the BLAKE2b-256 of its bytes. Stored form:
// docs/formats/profile.md. Immutable and shared between threads once parsed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/kv_shape.h"
#include "config/object_key.h"
#include "kernels/rans.h"
#include "kernels/rope.h"
#include "kernels/tile_rounds.h"

namespace terrace::codec {

// What turns a coefficient into channels: its own channel's step, a matrix a head, or one matrix of
// all heads.
enum class Transform : uint8_t { kChannel = 1, kHead = 2, kLayer = 3 };

inline constexpr uint32_t kTables = kernels::kRansTables;
using kernels::kLevelTable;
using kernels::kScaleTables;
inline constexpr uint32_t kMaxChannels = 16384;
inline constexpr uint32_t kMaxModelIdBytes = 512;
inline constexpr uint32_t kMaxPoints = 64;

struct SectionProfile {
  uint32_t channels = 0;
  uint32_t block = 0;            // coefficients mixed with each other: 1, a head's, or all
  std::vector<int16_t> scale16;  // of coefficient c: 16 log2 of its standard deviation
  std::vector<float> mean;       // of channel j, un-rotated
  std::vector<float> row_scale;  // of channel j: what one unit of the integer transform is worth
  // The transform as kernels::PairRows leaves it; empty for kChannel.
  std::vector<int16_t> pairs;
  int32_t level_slope = 0;           // 256 d log2(scale of a token) / d log2(its precision)
  std::vector<float> level_weights;  // K channels, V channels, log K norm, log V norm, constant
};

// What was measured at one step on texts that nothing was fitted to.
struct OperatingPoint {
  int32_t lambda16 = 0;
  float bits_per_value = 0;
  float mean_kl = 0;  // nats a token
};

class Profile {
 public:
  // InvalidArgument naming the field; DataLoss on a wrong checksum; FailedPrecondition on an
  // unknown major version.
  static absl::StatusOr<std::shared_ptr<const Profile>> Parse(std::span<const uint8_t> bytes);

  const Fingerprint& hash() const { return hash_; }
  const std::string& name() const { return name_; }
  // KvGeometry::model_id of the KV it is for; empty: any model of its geometry.
  const std::string& model_id() const { return model_id_; }
  // Steps ascending, so KL too; maybe none.
  const std::vector<OperatingPoint>& points() const { return points_; }
  // The largest step (lambda16) known to lose no more than `mean_kl` on average: between points by
  // their logarithms, never beyond the last. nullopt when the smallest measured step loses more.
  std::optional<int32_t> StepFor(double mean_kl) const;
  Transform transform() const { return transform_; }
  bool levels() const { return levels_; }
  uint32_t layers() const { return layers_; }
  uint32_t heads() const { return heads_; }
  uint32_t k_dim() const { return k_dim_; }
  uint32_t v_dim() const { return v_dim_; }
  kernels::RopePairing pairing() const { return pairing_; }
  uint32_t rotary_dim() const { return rotary_dim_; }
  const std::vector<uint64_t>& frequencies() const { return frequencies_; }
  const kernels::RansTables& tables() const { return *tables_; }
  const SectionProfile& section(uint32_t s) const { return sections_[s]; }

  // FailedPrecondition when the KV is of another geometry.
  absl::Status CheckShape(const KvShape& shape) const;

 private:
  Profile() = default;
  absl::Status ParseAll(std::span<const uint8_t> bytes);
  absl::Status ParsePoints(class ByteReader& reader, uint32_t count);
  absl::Status ParseTables(class ByteReader& reader);
  absl::Status ParseSection(uint32_t s, class ByteReader& reader);

  Fingerprint hash_{};
  std::string name_, model_id_;
  std::vector<OperatingPoint> points_;
  Transform transform_ = Transform::kChannel;
  bool levels_ = false;
  uint32_t layers_ = 0, heads_ = 0, k_dim_ = 0, v_dim_ = 0, rotary_dim_ = 0;
  kernels::RopePairing pairing_ = kernels::RopePairing::kNone;
  std::vector<uint64_t> frequencies_;  // turns a position, in 2^-64
  std::unique_ptr<kernels::RansTables> tables_;
  std::vector<SectionProfile> sections_;
};

}  // namespace terrace::codec
