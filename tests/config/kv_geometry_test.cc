#include "config/kv_geometry.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

namespace terrace {
namespace {

KvGeometry SmolLm2() {
  KvGeometry geometry;
  geometry.model_id = "smollm2-135m";
  geometry.dtype = Dtype::kF32;
  geometry.order = KvOrder::kHeadMajor;
  geometry.layers = 30;
  geometry.kv_heads = 3;
  geometry.head_dim = geometry.v_head_dim = 64;
  geometry.rope_theta = 100000;
  return geometry;
}

TEST(KvGeometry, LayoutHasKThenVOfEachLayer) {
  KvGeometry geometry = SmolLm2();
  geometry.v_head_dim = 32;
  ASSERT_TRUE(geometry.Validate().ok());
  const ObjectLayout layout = geometry.Layout();
  ASSERT_TRUE(layout.Validate().ok());
  ASSERT_EQ(layout.part_bytes_per_token.size(), 60u);
  EXPECT_EQ(layout.part_bytes_per_token[0], 3u * 64 * 4);
  EXPECT_EQ(layout.part_bytes_per_token[1], 3u * 32 * 4);
  EXPECT_EQ(layout.fingerprint, geometry.ModelFingerprint());
  EXPECT_EQ(layout.kind, ObjectKind::kKv);
}

// From Python's hashlib over the encoding: u64le integers, text behind its u64le length.
TEST(KvGeometry, FingerprintAgreesWithAnIndependentBlake2b) {
  EXPECT_EQ(ObjectKey{SmolLm2().ModelFingerprint()}.ToHex(),
            "7ebf0fea989c5ca0a639356b258d1c9472150e7be6c4e69e0bd80b3519d132aa");
}

TEST(KvGeometry, EveryFieldChangesTheFingerprint) {
  const std::function<void(KvGeometry&)> changes[] = {
      [](KvGeometry&) {},
      [](KvGeometry& g) { g.model_id += "x"; },
      [](KvGeometry& g) { g.dtype = Dtype::kBf16; },
      [](KvGeometry& g) { g.order = KvOrder::kTokenMajor; },
      [](KvGeometry& g) { g.layers = 29; },
      [](KvGeometry& g) { g.kv_heads = 4; },
      [](KvGeometry& g) { g.head_dim = 32; },
      [](KvGeometry& g) { g.v_head_dim = 32; },
      [](KvGeometry& g) { g.rope_theta = 10000; },
      [](KvGeometry& g) { g.rope_scaling = "linear:2"; },
      [](KvGeometry& g) { g.tp_size = 2; },
      [](KvGeometry& g) { g.tp_size = 2, g.tp_rank = 1; },
      [](KvGeometry& g) { g.pp_size = 2; },
      [](KvGeometry& g) { g.pp_size = 2, g.pp_rank = 1; },
      [](KvGeometry& g) { g.lora = "a"; },
      [](KvGeometry& g) { g.engine_layout = "a"; },
  };
  std::set<Fingerprint> seen;
  for (const auto& change : changes) {
    KvGeometry geometry = SmolLm2();
    change(geometry);
    ASSERT_TRUE(geometry.Validate().ok());
    seen.insert(geometry.ModelFingerprint());
  }
  EXPECT_EQ(seen.size(), std::size(changes));
}

TEST(KvGeometry, NegativeZeroThetaIsZero) {
  KvGeometry plain = SmolLm2();
  plain.rope_theta = 0.0;
  KvGeometry negative = SmolLm2();
  negative.rope_theta = -0.0;
  ASSERT_TRUE(negative.Validate().ok());
  EXPECT_EQ(plain.ModelFingerprint(), negative.ModelFingerprint());
}

struct BadGeometry {
  const char* field;
  std::function<void(KvGeometry&)> change;
};

TEST(KvGeometry, InconsistentValuesAreRefusedByName) {
  const BadGeometry cases[] = {
      {"model_id", [](KvGeometry& g) { g.model_id.clear(); }},
      {"model_id", [](KvGeometry& g) { g.model_id.assign(513, 'm'); }},
      {"dtype", [](KvGeometry& g) { g.dtype = static_cast<Dtype>(0); }},
      {"dtype", [](KvGeometry& g) { g.dtype = static_cast<Dtype>(7); }},
      {"order", [](KvGeometry& g) { g.order = static_cast<KvOrder>(3); }},
      {"layers", [](KvGeometry& g) { g.layers = 0; }},
      {"layers", [](KvGeometry& g) { g.layers = 220; }},
      {"kv_heads", [](KvGeometry& g) { g.kv_heads = 0; }},
      {"kv_heads", [](KvGeometry& g) { g.kv_heads = 1025; }},
      {"head_dim", [](KvGeometry& g) { g.head_dim = 0; }},
      {"v_head_dim", [](KvGeometry& g) { g.v_head_dim = 4097; }},
      {"rope_theta", [](KvGeometry& g) { g.rope_theta = std::nan(""); }},
      {"rope_theta", [](KvGeometry& g) { g.rope_theta = -1; }},
      {"rope_theta", [](KvGeometry& g) { g.rope_theta = std::numeric_limits<double>::infinity(); }},
      {"rope_scaling", [](KvGeometry& g) { g.rope_scaling.assign(4097, 's'); }},
      {"tp_size", [](KvGeometry& g) { g.tp_size = 0; }},
      {"tp_rank", [](KvGeometry& g) { g.tp_rank = 1; }},
      {"pp_rank", [](KvGeometry& g) { g.pp_size = 2, g.pp_rank = 2; }},
      {"lora", [](KvGeometry& g) { g.lora.assign(513, 'l'); }},
      {"engine_layout", [](KvGeometry& g) { g.engine_layout.assign(513, 'e'); }},
      {"bytes a token",
       [](KvGeometry& g) { g.layers = 219, g.kv_heads = 1024, g.head_dim = g.v_head_dim = 4096; }},
  };
  for (const BadGeometry& bad : cases) {
    KvGeometry geometry = SmolLm2();
    bad.change(geometry);
    const absl::Status status = geometry.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field;
    EXPECT_NE(status.message().find(bad.field), std::string::npos) << status;
  }
}

TEST(KvGeometry, DtypeNamesRoundTrip) {
  for (Dtype dtype :
       {Dtype::kF32, Dtype::kF16, Dtype::kBf16, Dtype::kF8E4M3, Dtype::kF8E5M2, Dtype::kI8}) {
    EXPECT_EQ(*ParseDtype(DtypeName(dtype)), dtype);
    EXPECT_GT(DtypeBytes(dtype), 0u);
  }
  EXPECT_EQ(*ParseDtype("bf16"), Dtype::kBf16);
  EXPECT_EQ(DtypeBytes(Dtype::kF32), 4u);
  EXPECT_EQ(DtypeBytes(Dtype::kBf16), 2u);
  const absl::Status unknown = ParseDtype("float64").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.message().find("bfloat16"), std::string::npos) << unknown;
}

}  // namespace
}  // namespace terrace
