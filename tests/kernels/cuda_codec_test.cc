// The kernels of codecs 3 and 1 on the GPU. Fails where there is none: run it where there is one.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "tests/support/gpu_codec_suite.h"
#include "tests/support/gpu_nibble_suite.h"

namespace terrace::testing {
namespace {

// Throws, which fails the test that needed it.
void Check(int error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " +
                           cudaGetErrorString(static_cast<cudaError_t>(error)));
}

class Gpu {
 public:
  Gpu() { Check(cudaStreamCreate(&stream_), "no GPU to test on"); }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu() {
    for (void* block : blocks_) cudaFree(block);
    cudaStreamDestroy(stream_);
  }
  void* Allocate(size_t bytes) {
    void* memory = nullptr;
    Check(cudaMallocManaged(&memory, bytes), "cudaMallocManaged");
    blocks_.push_back(memory);
    std::memset(memory, 0, bytes);
    return memory;
  }
  void FillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
                 kernels::Turn* out) {
    Check(kernels::CudaFillTurns(frequencies, pairs, first, positions, out, stream_),
          "CudaFillTurns");
    Wait();
  }
  void Decode(const kernels::DecodeLaunch& launch) {
    Check(kernels::CudaDecodeTiles(launch, stream_), "CudaDecodeTiles");
    Wait();
  }
  void Encode(const kernels::EncodeLaunch& launch) {
    Check(kernels::CudaEncodeTiles(launch, stream_), "CudaEncodeTiles");
    Wait();
  }
  void DecodeNibbles(const kernels::NibbleLaunch& launch) {
    Check(kernels::CudaDecodeNibbles(launch, stream_), "CudaDecodeNibbles");
    Wait();
  }
  void EncodeNibbles(const kernels::NibbleLaunch& launch) {
    Check(kernels::CudaEncodeNibbles(launch, stream_), "CudaEncodeNibbles");
    Wait();
  }

 private:
  void Wait() { Check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  cudaStream_t stream_ = nullptr;
  std::vector<void*> blocks_;
};

INSTANTIATE_TYPED_TEST_SUITE_P(OnGpu, GpuCodecSuite, ::testing::Types<Gpu>);
INSTANTIATE_TYPED_TEST_SUITE_P(OnGpu, GpuNibbleSuite, ::testing::Types<Gpu>);

}  // namespace
}  // namespace terrace::testing
