#include "kernels/cuda_codec.h"
#include "kernels/cuda_warp.cuh"
#include "kernels/tile_rows.cuh"
#include "kernels/tile_stream.cuh"
#include "kernels/tile_values.cuh"
#include "kernels/tile_writer.cuh"
#include "kernels/turn.h"

namespace terrace::kernels {
namespace {

constexpr uint32_t kWarps = 4;  // of a block; also its tiles when there are many
constexpr uint32_t kTableBytes = kGpuTables * kRansTotal * sizeof(uint32_t);

// Each of a block's tiles is decoded by one warp; then all of its warps make the values.
__global__ void __launch_bounds__(kWarps * 32)
    DecodeKernel(DecodeLaunch launch, uint32_t tiles_each) {
  extern __shared__ uint4 shared[];
  auto* const tables = reinterpret_cast<uint32_t*>(shared);
  auto* const places = reinterpret_cast<TilePlaces*>(shared + kTableBytes / sizeof(uint4));
  const auto* const from = reinterpret_cast<const uint4*>(launch.tables);
  for (uint32_t i = threadIdx.x; i < kTableBytes / sizeof(uint4); i += blockDim.x) {
    shared[i] = __ldg(from + i);
  }
  __syncthreads();

  CudaWarp warp;
  const uint32_t warp_id = threadIdx.x / 32, first = blockIdx.x * tiles_each;
  const uint32_t tiles = min(tiles_each, launch.count - first);
  const size_t scratch_bytes = DecodeScratchBytes(launch.scratch_coefficients);
  const auto scratch_of = [&](uint32_t tile) {
    return reinterpret_cast<uint32_t*>(launch.scratch + (first + tile) * scratch_bytes);
  };
  if (warp_id < tiles) {
    const TileStatus status =
        DecodeTile(warp, tables, launch.jobs[first + warp_id], BytesOf(launch.format),
                   scratch_of(warp_id), places[warp_id]);
    if (threadIdx.x % 32 == 0) {
      places[warp_id].status = status;
      launch.status[first + warp_id] = status;
    }
  }
  __syncthreads();

  for (uint32_t tile = 0; tile < tiles; ++tile) {
    if (places[tile].status != TileStatus::kDone) continue;
    const DecodeJob job = launch.jobs[first + tile];
    for (uint32_t item = warp_id; item < ItemsOf(job, places[tile]); item += kWarps) {
      WriteItem(warp, job, launch.format, places[tile], scratch_of(tile), item);
    }
  }
}

constexpr uint32_t kEncodeWarps = 8;  // of a block, which encodes one job
constexpr uint32_t kSymbolBytes = kGpuTables * kRansSymbols * sizeof(EncodeSymbol);
constexpr uint32_t kEncodeSharedBytes = kSymbolBytes + sizeof(EncodeState);

__global__ void __launch_bounds__(kEncodeWarps * 32) EncodeKernel(EncodeLaunch launch) {
  extern __shared__ uint4 shared[];
  auto* const tables = reinterpret_cast<EncodeSymbol*>(shared);
  auto& state = *reinterpret_cast<EncodeState*>(shared + kSymbolBytes / sizeof(uint4));
  const auto* const from = reinterpret_cast<const uint4*>(launch.tables);
  for (uint32_t i = threadIdx.x; i < kSymbolBytes / sizeof(uint4); i += blockDim.x) {
    shared[i] = __ldg(from + i);
  }
  for (uint32_t i = threadIdx.x; i < 2 * kTilePlaces; i += blockDim.x) {
    state.magnitude[i / kTilePlaces][i % kTilePlaces] = 0;
    state.unfit[i / kTilePlaces][i % kTilePlaces] = 0;
  }
  CudaWarp warp;
  const uint32_t warp_id = threadIdx.x / 32;
  const EncodeJob& job = launch.jobs[blockIdx.x];
  const EncodeRows rows(job,
                        launch.scratch + blockIdx.x * EncodeScratchBytes(launch.layer_channels));
  for (uint32_t item = warp_id; item < LoadItems(job); item += kEncodeWarps) {
    LoadValues(warp, job, launch.format, rows, item);
  }
  __syncthreads();
  if (warp_id < GroupsOf(job)) ChooseLevels(warp, job, rows, state, warp_id);
  __syncthreads();
  for (uint32_t part = 0; part < 2; ++part) {
    for (uint32_t item = warp_id; item < QuantiseItems(job, part); item += kEncodeWarps) {
      Quantise(warp, job, rows, state, part, item);
    }
  }
  __syncthreads();
  if (warp_id >= 2) return;
  const uint32_t size = WriteTile(warp, tables, job, BytesOf(launch.format), rows, state, warp_id);
  if (threadIdx.x % 32 == 0) launch.sizes[2 * blockIdx.x + warp_id] = size;
}

__global__ void TurnsKernel(const uint64_t* frequencies, uint32_t pairs, uint64_t first,
                            uint64_t count, Turn* out) {
  const uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = TurnOfPhase((first + i / pairs) * frequencies[i % pairs]);
}

int SmCount() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace

int CudaFillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
                  Turn* out, CudaStream stream) {
  const uint64_t count = uint64_t{pairs} * positions;
  if (count == 0) return cudaSuccess;
  TurnsKernel<<<static_cast<uint32_t>((count + 127) / 128), 128, 0,
                static_cast<cudaStream_t>(stream)>>>(frequencies, static_cast<uint32_t>(pairs),
                                                     first, count, out);
  return cudaGetLastError();
}

int CudaDecodeTiles(const DecodeLaunch& launch, CudaStream stream) {
  if (launch.count == 0) return cudaSuccess;
  // Few tiles are spread over all SMs; with many, four share a copy of the tables.
  const bool many = launch.count > 3 * static_cast<uint32_t>(SmCount());
  const uint32_t tiles_each = many ? kWarps : 1;
  const uint32_t shared_bytes =
      kTableBytes + tiles_each * static_cast<uint32_t>(sizeof(TilePlaces));
  const cudaError_t error = cudaFuncSetAttribute(
      DecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  DecodeKernel<<<(launch.count + tiles_each - 1) / tiles_each, kWarps * 32, shared_bytes,
                 static_cast<cudaStream_t>(stream)>>>(launch, tiles_each);
  return cudaGetLastError();
}

int CudaEncodeTiles(const EncodeLaunch& launch, CudaStream stream) {
  if (launch.count == 0) return cudaSuccess;
  EncodeKernel<<<launch.count, kEncodeWarps * 32, kEncodeSharedBytes,
                 static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace terrace::kernels
