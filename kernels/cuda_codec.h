// Codecs 3 and 1 (docs/formats/chunk.md) on a GPU: the bytes of the CPU's encoders, the values of
// its decoders. Kernels are queued on a stream and run later; everything given must stay until
// then. All pointers are to memory of the GPU unless they say otherwise; nothing is allocated.
// Functions return 0, or the cudaError_t of the launch. Thread: any that has the device current.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/gpu_tile.h"

namespace terrace::kernels {

// A cudaStream_t, so that callers need no CUDA headers.
using CudaStream = void*;

// kernels::FillTurns on the GPU, once for all layers of a chunk.
int CudaFillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
                  Turn* out, CudaStream stream);

struct DecodeLaunch {
  const DecodeJob* jobs = nullptr;
  uint32_t count = 0;
  ValueFormat format = ValueFormat::kBf16;
  const uint32_t* tables = nullptr;  // as PackDecodeTables
  // DecodeScratchBytes of the largest section for each job, aligned to 16 bytes.
  uint8_t* scratch = nullptr;
  uint32_t scratch_coefficients = 0;  // of the largest section
  TileStatus* status = nullptr;       // a job each
};

// Decodes tiles of any sections of one profile straight to where an engine wants them: one kernel,
// as for all tiles of a layer while the next one's are copied. What a tile holds may be anything: a
// damaged one gets a status, and what it wrote within its own tokens means nothing. Checksums are
// the host's to check. 132 SMs are busy from about 400 tiles on.
int CudaDecodeTiles(const DecodeLaunch& launch, CudaStream stream);

struct EncodeLaunch {
  const EncodeJob* jobs = nullptr;
  uint32_t count = 0;
  ValueFormat format = ValueFormat::kBf16;
  const EncodeSymbol* tables = nullptr;  // as PackEncodeTables
  uint8_t* scratch = nullptr;            // EncodeScratchBytes for each job, aligned to 16 bytes
  uint32_t layer_channels = 0;           // of K and V together
  uint32_t* sizes = nullptr;  // of K's tile and V's for each job; 0: more than its capacity
};

// Encodes tiles of any layers of one profile: the bytes of codec::EncodeTile.
int CudaEncodeTiles(const EncodeLaunch& launch, CudaStream stream);

struct NibbleLaunch {
  const NibbleJob* jobs = nullptr;
  uint32_t count = 0;
  TileStatus* status = nullptr;  // of each, decoded
  uint32_t* sizes = nullptr;     // of each, encoded; 0: more than its room
};

// Tiles of codec 1 of any sections: the bytes and the values of the CPU.
int CudaDecodeNibbles(const NibbleLaunch& launch, CudaStream stream);
int CudaEncodeNibbles(const NibbleLaunch& launch, CudaStream stream);

}  // namespace terrace::kernels
