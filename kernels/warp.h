// How code for one warp of 32 lanes is written so that a CPU can run it too, lane after lane: it is
// a template over a class that provides
//
//   Lanes<T>           a T of each lane; lane l is [l]
//   Each(f)            f(lane) for every lane
//   Ballot(f)          f(lane) of every lane as bits
//   Sum(f)             the sum of f(lane), modulo 2^32, to all lanes
//   Scan(lanes)        each becomes the sum of those of lower lanes; returns the sum of all
//   From(lanes, l)     lane l's value, to all lanes
//   Sync()             memory written by one lane is seen by the others
//   Multiply<A, B>(a, b, sums)   the matrix instruction (kernels/tile_rows.cuh)
//   Count, Load, LoadMatrix, Store4, AtomicAdd, and Fma, Mul, Add, Divide, Floor, RoundToEven,
//   which round once: of one lane
//
// CudaWarp (kernels/cuda_warp.cuh) is the GPU's; tests/support/host_warp.h is the CPU's, on which
// the tests run the very code of the kernels. What is outside of Each and Ballot is the same in
// every lane. Device code calls constant expressions of the host's headers as they are.
#pragma once

#if defined(__CUDACC__)
#define TERRACE_GPU __device__ __forceinline__
#define TERRACE_UNROLL _Pragma("unroll")
#define TERRACE_ROLLED _Pragma("unroll 1")
#else
#define TERRACE_GPU inline
#define TERRACE_UNROLL
#define TERRACE_ROLLED
#endif
