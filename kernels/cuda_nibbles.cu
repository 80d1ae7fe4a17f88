// CudaDecodeNibbles and CudaEncodeNibbles of kernels/cuda_codec.h.
#include "kernels/cuda_codec.h"
#include "kernels/cuda_warp.cuh"
#include "kernels/tile_nibbles.cuh"

namespace terrace::kernels {
namespace {

// A block a tile.
__global__ void __launch_bounds__(kSegments * 32) DecodeNibbleKernel(NibbleLaunch launch) {
  __shared__ NibbleState state;
  CudaWarp warp;
  const uint32_t segment = threadIdx.x / 32;
  const NibbleJob job = launch.jobs[blockIdx.x];
  TileStatus status = CheckNibbles(job);
  const bool nibbles = status == TileStatus::kDone && job.tile[0] == kNibbleForm;
  if (nibbles) CountEscapes(warp, job, state, segment);
  __syncthreads();
  if (nibbles) status = CheckEscapes(job, state);
  if (threadIdx.x == 0) launch.status[blockIdx.x] = status;
  if (status != TileStatus::kDone) return;
  if (nibbles) {
    UnpackSegment(warp, job, state, segment);
  } else {
    CopyRawValues(warp, job, segment, false);
  }
}

__global__ void __launch_bounds__(kSegments * 32) EncodeNibbleKernel(NibbleLaunch launch) {
  __shared__ NibbleState state;
  CudaWarp warp;
  const uint32_t segment = threadIdx.x / 32;
  const NibbleJob job = launch.jobs[blockIdx.x];
  state.times[threadIdx.x] = 0;
  if (threadIdx.x < kSegments) state.escapes[threadIdx.x] = 0;
  __syncthreads();
  if (job.bf16) SampleExponents(warp, job, state, segment);
  __syncthreads();
  RankExponents(warp, state, segment);
  __syncthreads();
  if (job.bf16) CountUncoded(warp, job, state, segment);
  __syncthreads();
  const uint32_t size = PackSegment(warp, job, state, segment);
  if (threadIdx.x == 0) launch.sizes[blockIdx.x] = size;
}

}  // namespace

int CudaDecodeNibbles(const NibbleLaunch& launch, CudaStream stream) {
  if (launch.count == 0) return cudaSuccess;
  DecodeNibbleKernel<<<launch.count, kSegments * 32, 0, static_cast<cudaStream_t>(stream)>>>(
      launch);
  return cudaGetLastError();
}

int CudaEncodeNibbles(const NibbleLaunch& launch, CudaStream stream) {
  if (launch.count == 0) return cudaSuccess;
  EncodeNibbleKernel<<<launch.count, kSegments * 32, 0, static_cast<cudaStream_t>(stream)>>>(
      launch);
  return cudaGetLastError();
}

}  // namespace terrace::kernels
