// A warp of the GPU, for the templates of kernels/warp.h. Every lane of the warp must be there.
#pragma once

#include <cstdint>

#include "kernels/gpu_tile.h"
#include "kernels/tile_rows.cuh"

namespace terrace::kernels {

class CudaWarp {
 public:
  template <typename T>
  class Lanes {
   public:
    __device__ __forceinline__ T& operator[](uint32_t) { return value_; }

   private:
    T value_;
  };

  __device__ CudaWarp() : lane_(threadIdx.x % 32) {}

  template <typename F>
  __device__ __forceinline__ void Each(F f) const {
    f(lane_);
  }
  template <typename F>
  __device__ __forceinline__ uint32_t Ballot(F f) const {
    return __ballot_sync(~0u, f(lane_));
  }
  template <typename F>
  __device__ __forceinline__ uint32_t Sum(F f) const {
    return __reduce_add_sync(~0u, static_cast<uint32_t>(f(lane_)));
  }
  template <typename T>
  __device__ __forceinline__ T From(Lanes<T>& values, uint32_t lane) const {
    return __shfl_sync(~0u, values[lane_], static_cast<int>(lane));
  }
  __device__ __forceinline__ uint32_t Scan(Lanes<uint32_t>& values) const {
    const uint32_t own = values[lane_];
    uint32_t sum = own;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t before = __shfl_up_sync(~0u, sum, distance);
      if (lane_ >= distance) sum += before;
    }
    values[lane_] = sum - own;
    return __shfl_sync(~0u, sum, 31);
  }
  __device__ __forceinline__ void Sync() const { __syncwarp(); }

  template <bool kSignedA, bool kSignedB, typename B, typename Sums>
  __device__ __forceinline__ void Multiply(Lanes<RowBytes>& lanes, B b_of, Sums sums_of) const {
    const uint32_t(&a)[4] = lanes[lane_].word;
    const uint32_t(&b)[2] = b_of(lane_);
    int32_t(&sums)[4] = sums_of(lane_);
#define TERRACE_MMA(A, B)                                          \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." A "." B             \
      ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
    if constexpr (kSignedA && kSignedB) TERRACE_MMA("s8", "s8");
    if constexpr (kSignedA && !kSignedB) TERRACE_MMA("s8", "u8");
    if constexpr (!kSignedA && kSignedB) TERRACE_MMA("u8", "s8");
    if constexpr (!kSignedA && !kSignedB) TERRACE_MMA("u8", "u8");
#undef TERRACE_MMA
  }

  static __device__ __forceinline__ uint32_t Count(uint32_t bits) { return __popc(bits); }
  static __device__ __forceinline__ uint32_t Load(const uint8_t* at) {
    return __ldg(reinterpret_cast<const uint32_t*>(at));
  }
  static __device__ __forceinline__ MatrixWords LoadMatrix(const MatrixWords* at) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(at));
    return {{words.x, words.y}, {words.z, words.w}};
  }
  static __device__ __forceinline__ void Store4(uint8_t* at, const uint32_t* words) {
    *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
  }
  static __device__ __forceinline__ float Fma(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
  }
  static __device__ __forceinline__ float Mul(float a, float b) { return __fmul_rn(a, b); }
  static __device__ __forceinline__ float Add(float a, float b) { return __fadd_rn(a, b); }
  static __device__ __forceinline__ float Divide(float a, float b) { return __fdiv_rn(a, b); }
  static __device__ __forceinline__ float Floor(float a) { return floorf(a); }
  static __device__ __forceinline__ float RoundToEven(float a) { return rintf(a); }
  static __device__ __forceinline__ void AtomicAdd(uint32_t* to, uint32_t value) {
    atomicAdd(to, value);
  }

 private:
  uint32_t lane_;
};

}  // namespace terrace::kernels
