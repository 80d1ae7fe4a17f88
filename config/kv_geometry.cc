#include "config/kv_geometry.h"

#include <sodium.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "config/text.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxLayers = (kMaxParts - 2) / 2;  // part 0 is the identity part
constexpr uint32_t kMaxKvHeads = 1024;
constexpr uint32_t kMaxHeadDim = 4096;
constexpr uint32_t kMaxParallel = 65536;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxScalingBytes = 4096;  // per-dimension factor lists run to a few KiB
static_assert(kMaxLayers == 219);

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  uint32_t bytes;
};
// Names are those of torch and of safetensors configs; the first spelling of a dtype is printed.
constexpr std::array<DtypeInfo, 11> kDtypes = {{
    {Dtype::kF32, "float32", 4},
    {Dtype::kF16, "float16", 2},
    {Dtype::kBf16, "bfloat16", 2},
    {Dtype::kF8E4M3, "float8_e4m3fn", 1},
    {Dtype::kF8E5M2, "float8_e5m2", 1},
    {Dtype::kI8, "int8", 1},
    {Dtype::kF32, "f32", 4},
    {Dtype::kF16, "f16", 2},
    {Dtype::kBf16, "bf16", 2},
    {Dtype::kF8E4M3, "fp8_e4m3", 1},
    {Dtype::kF8E5M2, "fp8_e5m2", 1},
}};

const DtypeInfo* FindDtype(Dtype dtype) {
  for (const DtypeInfo& info : kDtypes) {
    if (info.dtype == dtype) return &info;
  }
  return nullptr;
}

absl::Status CheckRange(std::string_view field, uint64_t value, uint64_t min, uint64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry.", Sv(field), ": ", value, "; expected ", min, " .. ", max));
}

absl::Status CheckText(std::string_view field, std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("geometry.", Sv(field), ": ", text.size(),
                                                 " bytes; expected at most ", max_bytes));
}

// Feeds fields so that distinct geometries never share an encoding: integers are fixed-width
// little-endian u64, text goes behind its length.
class FingerprintWriter {
 public:
  FingerprintWriter() {
    // The hash is the same whichever implementation libsodium picks.
    [[maybe_unused]] static const int initialised = sodium_init();
    crypto_generichash_init(&state_, nullptr, 0, 32);
    Text("terrace kv geometry 1");
  }
  void U64(uint64_t value) {
    static_assert(std::endian::native == std::endian::little);
    crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(&value),
                              sizeof value);
  }
  void Text(std::string_view text) {
    U64(text.size());
    crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(text.data()),
                              text.size());
  }
  Fingerprint Finish() {
    Fingerprint fingerprint;
    crypto_generichash_final(&state_, fingerprint.data(), fingerprint.size());
    return fingerprint;
  }

 private:
  crypto_generichash_state state_;
};

}  // namespace

absl::StatusOr<Dtype> ParseDtype(std::string_view name) {
  std::string known;
  for (const DtypeInfo& info : kDtypes) {
    if (info.name == name) return info.dtype;
    absl::StrAppend(&known, known.empty() ? "" : " ", Sv(info.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("dtype: unknown name '", Sv(name.substr(0, 64)), "'; expected one of ", known));
}

std::string_view DtypeName(Dtype dtype) {
  const DtypeInfo* info = FindDtype(dtype);
  return info == nullptr ? "invalid" : info->name;
}

uint32_t DtypeBytes(Dtype dtype) {
  const DtypeInfo* info = FindDtype(dtype);
  return info == nullptr ? 0 : info->bytes;
}

absl::Status KvGeometry::Validate() const {
  if (model_id.empty()) {
    return absl::InvalidArgumentError("geometry.model_id: empty; expected 1 .. 512 bytes");
  }
  if (FindDtype(dtype) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.dtype: ", static_cast<int>(dtype), "; expected 1 .. 6"));
  }
  if (order != KvOrder::kTokenMajor && order != KvOrder::kHeadMajor) {
    return absl::InvalidArgumentError(absl::StrCat("geometry.order: ", static_cast<int>(order),
                                                   "; expected 1 (token major) or 2 (head major)"));
  }
  if (!std::isfinite(rope_theta) || rope_theta < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.rope_theta: ", rope_theta, "; expected a finite number >= 0"));
  }
  const absl::Status checks[] = {
      CheckText("model_id", model_id, kMaxNameBytes),
      CheckRange("layers", layers, 1, kMaxLayers),
      CheckRange("kv_heads", kv_heads, 1, kMaxKvHeads),
      CheckRange("head_dim", head_dim, 1, kMaxHeadDim),
      CheckRange("v_head_dim", v_head_dim, 1, kMaxHeadDim),
      CheckText("rope_scaling", rope_scaling, kMaxScalingBytes),
      CheckRange("tp_size", tp_size, 1, kMaxParallel),
      CheckRange("pp_size", pp_size, 1, kMaxParallel),
      CheckText("lora", lora, kMaxNameBytes),
      CheckText("engine_layout", engine_layout, kMaxNameBytes),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  if (absl::Status s = CheckRange("tp_rank", tp_rank, 0, tp_size - 1); !s.ok()) return s;
  if (absl::Status s = CheckRange("pp_rank", pp_rank, 0, pp_size - 1); !s.ok()) return s;
  // The widest token allowed above is 219 * 32 MiB, more than an object may hold: refuse here, at
  // registration, what no store could ever use. At most 2^33 * 16, so it cannot wrap.
  const uint64_t token_bytes =
      uint64_t{layers} * kv_heads * (uint64_t{head_dim} + v_head_dim) * DtypeBytes(dtype);
  if (token_bytes * kGrainTokens > kMaxPayloadBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry: layers * kv_heads * (head_dim + v_head_dim) is ", token_bytes,
                     " bytes a token; expected at most ", kMaxPayloadBytes / kGrainTokens,
                     ", so that ", kGrainTokens, " tokens fit one object"));
  }
  return absl::OkStatus();
}

Fingerprint KvGeometry::ModelFingerprint() const {
  FingerprintWriter out;
  out.Text(model_id);
  out.U64(static_cast<uint64_t>(dtype));
  out.U64(static_cast<uint64_t>(order));
  out.U64(layers);
  out.U64(kv_heads);
  out.U64(head_dim);
  out.U64(v_head_dim);
  out.U64(std::bit_cast<uint64_t>(rope_theta + 0.0));  // -0.0 becomes 0.0: equal values, equal bits
  out.Text(rope_scaling);
  out.U64(tp_rank);
  out.U64(tp_size);
  out.U64(pp_rank);
  out.U64(pp_size);
  out.Text(lora);
  out.Text(engine_layout);
  return out.Finish();
}

ObjectLayout KvGeometry::Layout() const {
  ObjectLayout layout;
  layout.fingerprint = ModelFingerprint();
  layout.kind = ObjectKind::kKv;
  layout.part_bytes_per_token.reserve(size_t{2} * layers);
  for (uint32_t layer = 0; layer < layers; ++layer) {
    layout.part_bytes_per_token.push_back(kv_heads * head_dim * DtypeBytes(dtype));
    layout.part_bytes_per_token.push_back(kv_heads * v_head_dim * DtypeBytes(dtype));
  }
  return layout;
}

}  // namespace terrace
