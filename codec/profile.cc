#include "codec/profile.h"

#include <sodium.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "codec/byte_reader.h"
#include "codec/container.h"
#include "kernels/checksum.h"
#include "kernels/tile_math.h"

namespace terrace::codec {
namespace {

constexpr char kMagic[8] = {'T', 'K', 'V', 'P', 'R', 'O', 'F', '1'};
constexpr uint32_t kHeaderBytes = 128;

absl::Status Bad(absl::string_view field, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat("profile: ", field, " must be ", range));
}

bool AllFinite(const std::vector<float>& values) {
  for (float value : values) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

absl::Status CheckEnvelope(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return absl::InvalidArgumentError("profile: not a terrace profile (no TKVPROF1 at its start)");
  }
  ByteReader reader(bytes.subspan(8));
  const auto major = reader.Read<uint16_t>();
  if (major != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("profile: format ", major, "; this program reads format 1"));
  }
  reader.Skip(2);
  const auto stored = reader.Read<uint32_t>();
  if (reader.Read<uint64_t>() != bytes.size()) return absl::DataLossError("profile: truncated");
  const uint32_t zero = 0;
  uint32_t crc = kernels::Crc32c(bytes.data(), 12);
  crc = kernels::Crc32c(&zero, sizeof zero, crc);
  crc = kernels::Crc32c(bytes.data() + 16, bytes.size() - 16, crc);
  if (crc != stored) return absl::DataLossError("profile: checksum does not match");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Profile>> Profile::Parse(std::span<const uint8_t> bytes) {
  if (absl::Status status = CheckEnvelope(bytes); !status.ok()) return status;
  std::shared_ptr<Profile> profile(new Profile);
  if (absl::Status status = profile->ParseAll(bytes.subspan(24)); !status.ok()) return status;
  crypto_generichash(profile->hash_.data(), profile->hash_.size(), bytes.data(), bytes.size(),
                     nullptr, 0);
  return std::shared_ptr<const Profile>(std::move(profile));
}

absl::Status Profile::ParseAll(std::span<const uint8_t> bytes) {
  ByteReader reader(bytes);
  const auto transform = reader.Read<uint8_t>(), pairing = reader.Read<uint8_t>();
  rotary_dim_ = reader.Read<uint16_t>();
  layers_ = reader.Read<uint32_t>();
  heads_ = reader.Read<uint32_t>();
  k_dim_ = reader.Read<uint32_t>();
  v_dim_ = reader.Read<uint32_t>();
  const auto levels = reader.Read<uint8_t>(), points = reader.Read<uint8_t>();
  const auto model_id_bytes = reader.Read<uint16_t>();
  char name[kHeaderBytes - 48];
  reader.Copy(name, sizeof name);
  if (!reader.ok()) return absl::DataLossError("profile: truncated");
  name_.assign(name, strnlen(name, sizeof name));
  if (transform < 1 || transform > 3) return Bad("transform", "1 .. 3");
  if (pairing > 2) return Bad("pairing", "0 .. 2");
  if (layers_ < 1 || layers_ > kMaxParts / 2) return Bad("layers", "1 .. 220");
  if (heads_ < 1 || heads_ > 1024) return Bad("kv_heads", "1 .. 1024");
  if (k_dim_ < 1 || k_dim_ > 4096) return Bad("k_dim", "1 .. 4096");
  if (v_dim_ < 1 || v_dim_ > 4096) return Bad("v_dim", "1 .. 4096");
  if (rotary_dim_ > k_dim_ || rotary_dim_ % 2 != 0 || (pairing != 0) != (rotary_dim_ != 0)) {
    return Bad("rotary_dim", "even, at most k_dim, and 0 only without pairing");
  }
  if (heads_ * std::max(k_dim_, v_dim_) > kMaxChannels) {
    return Bad("kv_heads times the larger of k_dim and v_dim", "1 .. 16384");
  }
  if (levels > 1) return Bad("levels", "0 or 1");
  transform_ = static_cast<Transform>(transform);
  pairing_ = static_cast<kernels::RopePairing>(pairing);
  levels_ = levels == 1;
  if (model_id_bytes > kMaxModelIdBytes) return Bad("length of model_id", "0 .. 512");
  const auto model_id = reader.ReadArray<char>(model_id_bytes);
  model_id_.assign(model_id.begin(), model_id.end());
  if (absl::Status status = ParsePoints(reader, points); !status.ok()) return status;
  frequencies_ = reader.ReadArray<uint64_t>(rotary_dim_ / 2);
  if (absl::Status status = ParseTables(reader); !status.ok()) return status;
  sections_.resize(2 * layers_);
  for (uint32_t s = 0; s < sections_.size(); ++s) {
    if (absl::Status status = ParseSection(s, reader); !status.ok()) return status;
  }
  if (reader.left() != 0)
    return absl::InvalidArgumentError("profile: bytes after its last section");
  return absl::OkStatus();
}

absl::Status Profile::ParsePoints(ByteReader& reader, uint32_t count) {
  if (count > kMaxPoints) return Bad("number of operating points", "0 .. 64");
  for (uint32_t i = 0; i < count; ++i) {
    OperatingPoint point;
    point.lambda16 = reader.Read<int32_t>();
    point.bits_per_value = reader.Read<float>();
    point.mean_kl = reader.Read<float>();
    if (!reader.ok()) return absl::DataLossError("profile: truncated in its operating points");
    const std::string field = absl::StrCat("operating point ", i, ": ");
    if (point.lambda16 < -kMaxLambda16 || point.lambda16 > kMaxLambda16) {
      return Bad(field + "lambda16", "-1024 .. 1024");
    }
    if (!(point.bits_per_value > 0 && point.bits_per_value <= 64)) {
      return Bad(field + "bits a value", "above 0, at most 64");
    }
    if (!(point.mean_kl > 0 && std::isfinite(point.mean_kl))) {
      return Bad(field + "mean KL", "finite and above 0");
    }
    if (i != 0 &&
        (point.lambda16 <= points_.back().lambda16 || point.mean_kl < points_.back().mean_kl)) {
      return Bad(field + "lambda16 and mean KL", "above and at least those of the point before");
    }
    points_.push_back(point);
  }
  return absl::OkStatus();
}

absl::Status Profile::ParseTables(ByteReader& reader) {
  const std::vector<uint16_t> frequencies = reader.ReadArray<uint16_t>(kTables * 32);
  if (!reader.ok()) return absl::DataLossError("profile: truncated in its tables");
  tables_ = std::make_unique<kernels::RansTables>();
  for (uint32_t t = 0; t < kTables; ++t) {
    if (!kernels::RansBuildTable(tables_.get(), t, frequencies.data() + 32 * t)) {
      return Bad(absl::StrCat("table ", t), "32 frequencies that sum to 256");
    }
    for (uint32_t symbol = t < kScaleTables ? 31 : 0; symbol < 32 && t <= kLevelTable; ++symbol) {
      if (frequencies[32 * t + symbol] == 0) {
        return Bad(absl::StrCat("table ", t), absl::StrCat("able to code symbol ", symbol));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Profile::ParseSection(uint32_t s, ByteReader& reader) {
  SectionProfile& section = sections_[s];
  const uint32_t dim = s % 2 == 0 ? k_dim_ : v_dim_;
  section.channels = heads_ * dim;
  section.block = transform_ == Transform::kChannel ? 1
                  : transform_ == Transform::kHead  ? dim
                                                    : section.channels;
  section.scale16 = reader.ReadArray<int16_t>(section.channels);
  section.mean = reader.ReadArray<float>(section.channels);
  section.row_scale = reader.ReadArray<float>(section.channels);
  if (transform_ != Transform::kChannel) {
    const auto matrix = reader.ReadArray<int16_t>(uint64_t{section.channels} * section.block);
    if (!reader.ok()) return absl::DataLossError(absl::StrCat("profile: truncated in section ", s));
    section.pairs.resize(kernels::PairedSize(section.channels, section.block));
    kernels::PairRows(matrix.data(), section.channels, section.block, section.pairs.data());
  }
  section.level_slope = reader.Read<int32_t>();
  if (levels_) section.level_weights = reader.ReadArray<float>(heads_ * (k_dim_ + v_dim_) + 3);
  if (!reader.ok()) return absl::DataLossError(absl::StrCat("profile: truncated in section ", s));
  if (!AllFinite(section.mean) || !AllFinite(section.level_weights)) {
    return Bad(absl::StrCat("section ", s, ": mean and level weights"), "finite");
  }
  for (float scale : section.row_scale) {
    if (!(scale > 0) || !std::isfinite(scale)) {
      return Bad(absl::StrCat("section ", s, ": row scale"), "finite and above 0");
    }
  }
  if (section.level_slope < -1024 || section.level_slope > 1024) {
    return Bad(absl::StrCat("section ", s, ": level slope"), "-1024 .. 1024");
  }
  return absl::OkStatus();
}

std::optional<int32_t> Profile::StepFor(double mean_kl) const {
  const auto above = std::find_if(points_.begin(), points_.end(), [&](const OperatingPoint& point) {
    return !(point.mean_kl <= mean_kl);  // any, when asked for a NaN
  });
  if (above == points_.begin()) return std::nullopt;
  const OperatingPoint& below = above[-1];
  if (above == points_.end()) return below.lambda16;
  const double share = std::log(mean_kl / below.mean_kl) / std::log(above->mean_kl / below.mean_kl);
  return below.lambda16 + static_cast<int32_t>(share * (above->lambda16 - below.lambda16));
}

absl::Status Profile::CheckShape(const KvShape& shape) const {
  if (shape.layers == layers_ && shape.heads == heads_ && shape.k_dim == k_dim_ &&
      shape.v_dim == v_dim_) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("profile \"", name_, "\" is for ", layers_, " layers of ", heads_, " heads of ",
                   k_dim_, " and ", v_dim_, "; the KV has ", shape.layers, " of ", shape.heads,
                   " of ", shape.k_dim, " and ", shape.v_dim));
}

}  // namespace terrace::codec
