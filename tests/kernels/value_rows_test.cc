#include "kernels/value_rows.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "kernels/float_format.h"

namespace terrace::kernels {
namespace {

constexpr size_t kTokens = 5;

// A head of some shape, its tokens and what they should become.
template <typename T>
struct Case {
  HeadFormat head;
  size_t row_stride, out_stride, out_offset;
  std::vector<float> row_scale, mean, cosines, sines, steps;
  std::vector<T> in;

  Case(size_t dim, size_t rotary_dim, RopePairing pairing, Dtype dtype)
      : row_stride(dim + 3), out_stride((dim + 5) * 4), out_offset(2 * 4) {
    std::mt19937 random(static_cast<uint32_t>(dim));
    std::normal_distribution<float> normal(0, 1);
    const auto fill = [&](std::vector<float>* values, size_t count, float scale) {
      values->resize(count);
      for (float& value : *values) value = scale * normal(random);
    };
    fill(&row_scale, dim, 1);
    fill(&mean, dim, 10);
    fill(&cosines, kTokens * rotary_dim / 2, 1);
    fill(&sines, kTokens * rotary_dim / 2, 1);
    fill(&steps, kTokens, 1);
    steps[2] = 0x1p-128f;  // makes values that bfloat16 has no room for
    mean[0] = 0;
    in.resize(kTokens * row_stride);
    for (T& a : in) a = static_cast<T>(random());
    head = {dtype, dim, rotary_dim, pairing, row_scale.data(), mean.data()};
  }

  std::vector<TokenPlace> Places(std::vector<uint8_t>* out) const {
    std::vector<TokenPlace> places;
    for (size_t t = 0; t < kTokens; ++t) {
      const size_t turn = t * head.rotary_dim / 2;
      places.push_back(
          {steps[t], cosines.data() + turn, sines.data() + turn, out->data() + t * out_stride});
    }
    return places;
  }

  std::vector<uint8_t> Defined() const {
    std::vector<uint8_t> out(kTokens * out_stride, 0xaa);
    for (size_t t = 0; t < kTokens; ++t) {
      std::vector<float> x(head.dim);
      for (size_t j = 0; j < head.dim; ++j) {
        x[j] = __builtin_fmaf(static_cast<float>(in[t * row_stride + j]), steps[t] * row_scale[j],
                              mean[j]);
      }
      const size_t pairs = head.rotary_dim / 2;
      for (size_t i = 0; i < pairs; ++i) {
        const bool half = head.pairing == RopePairing::kHalf;
        float& a = x[half ? i : 2 * i];
        float& b = x[half ? i + pairs : 2 * i + 1];
        const float c = cosines[t * pairs + i], s = sines[t * pairs + i], first = a;
        a = __builtin_fmaf(first, c, -(b * s));
        b = __builtin_fmaf(b, c, first * s);
      }
      uint8_t* to = out.data() + t * out_stride + out_offset;
      for (size_t j = 0; j < head.dim; ++j) {
        const uint16_t half = head.dtype == Dtype::kBf16 ? Bf16OfFloat(x[j]) : F16OfFloat(x[j]);
        if (head.dtype == Dtype::kF32) {
          std::memcpy(to + 4 * j, &x[j], 4);
        } else {
          std::memcpy(to + 2 * j, &half, 2);
        }
      }
    }
    return out;
  }
};

template <typename T>
void Check(size_t dim, size_t rotary_dim, RopePairing pairing, Dtype dtype) {
  using Write = void (*)(const HeadFormat&, const T*, size_t, std::span<const TokenPlace>, size_t);
  const Case<T> of(dim, rotary_dim, pairing, dtype);
  for (Write write : {Write{WriteHead}, Write{WriteHeadPlain}}) {
    std::vector<uint8_t> out(kTokens * of.out_stride, 0xaa);
    write(of.head, of.in.data(), of.row_stride, of.Places(&out), of.out_offset);
    EXPECT_EQ(out, of.Defined()) << dim << " of which " << rotary_dim << " turn, pairing "
                                 << static_cast<int>(pairing) << ", " << DtypeName(dtype);
  }
}

TEST(ValueRows, EveryImplementationWritesTheDefinedBytes) {
  for (size_t dim : {1, 2, 8, 20, 32, 64, 80, 128, 192, 576}) {
    for (Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      for (RopePairing pairing :
           {RopePairing::kNone, RopePairing::kHalf, RopePairing::kInterleaved}) {
        for (size_t rotary_dim : {dim / 2 * 2, dim / 4 * 2, dim / 64 * 2}) {
          if ((rotary_dim == 0) != (pairing == RopePairing::kNone)) continue;
          Check<int8_t>(dim, rotary_dim, pairing, dtype);
          Check<int16_t>(dim, rotary_dim, pairing, dtype);
          Check<int32_t>(dim, rotary_dim, pairing, dtype);
        }
        if (pairing == RopePairing::kNone) Check<int8_t>(dim, 0, pairing, dtype);
      }
    }
  }
}

}  // namespace
}  // namespace terrace::kernels
