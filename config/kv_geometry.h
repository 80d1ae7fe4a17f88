// Geometry of a model's KV cache, as an engine declares it, and the layout and fingerprint that
// follow from it. Plain values; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "config/object_layout.h"

namespace terrace {

enum class Dtype : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3, kF8E4M3 = 4, kF8E5M2 = 5, kI8 = 6 };
absl::StatusOr<Dtype> ParseDtype(std::string_view name);  // "float32" "float16" "bfloat16" ...
std::string_view DtypeName(Dtype dtype);
uint32_t DtypeBytes(Dtype dtype);

// Order of a part's axes. Both row-major. kTokenMajor: [tokens, kv_heads, head_dim];
// kHeadMajor: [kv_heads, tokens, head_dim] (what transformers uses).
enum class KvOrder : uint8_t { kTokenMajor = 1, kHeadMajor = 2 };

struct KvGeometry {
  std::string model_id;  // weights identity: a digest or a revision name; not empty, <= 512 bytes
  Dtype dtype = Dtype::kBf16;
  KvOrder order = KvOrder::kTokenMajor;
  uint32_t layers = 0;       // 1 .. 219 (kMaxParts)
  uint32_t kv_heads = 0;     // 1 .. 1024
  uint32_t head_dim = 0;     // of K, 1 .. 4096
  uint32_t v_head_dim = 0;   // of V, 1 .. 4096
  double rope_theta = 0;     // 0 when the model has no RoPE
  std::string rope_scaling;  // canonical text of the scaling parameters; empty when none
  uint32_t tp_rank = 0, tp_size = 1, pp_rank = 0, pp_size = 1;
  std::string lora;           // adapter identity; empty when none
  std::string engine_layout;  // engine-private tag (ISA, block size, ...); empty when standard

  // InvalidArgument naming the field and its accepted range.
  absl::Status Validate() const;
  // BLAKE2b-256 over a canonical encoding of every field above. Requires Validate() ok.
  Fingerprint ModelFingerprint() const;
  // Parts layer 0 K, layer 0 V, layer 1 K, ... Requires Validate() ok.
  ObjectLayout Layout() const;
};

}  // namespace terrace
