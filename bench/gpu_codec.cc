// Decoding on a GPU, for the codec suite of a build with CUDA.
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/codec_inputs.h"
#include "codec/gpu_profile.h"
#include "kernels/cuda_codec.h"

namespace terrace::bench {
namespace {

constexpr int kPairs = 9;
constexpr uint32_t kTokens = 4096;
constexpr uint32_t kChunks = 8;  // decoded by one launch, from the same tiles to their own places

// Memory of the GPU, as long as this lives. Keeps the first error of any call.
class Gpu {
 public:
  Gpu() {
    Keep(cudaEventCreate(&start_));
    Keep(cudaEventCreate(&end_));
  }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu() {
    for (void* block : blocks_) cudaFree(block);
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  void Keep(int error) {
    if (error_ == cudaSuccess) error_ = static_cast<cudaError_t>(error);
  }
  absl::Status status() const {
    return error_ == cudaSuccess
               ? absl::OkStatus()
               : absl::InternalError(absl::StrCat("GPU: ", cudaGetErrorString(error_)));
  }
  uint8_t* Bytes(size_t size) {
    void* memory = nullptr;
    Keep(cudaMalloc(&memory, size));
    blocks_.push_back(memory);
    return static_cast<uint8_t*>(memory);
  }
  void Copy(void* to, const void* from, size_t size) {
    Keep(cudaMemcpy(to, from, size, cudaMemcpyDefault));
  }
  // Between the start and the end of what `queue` queues.
  template <typename Queue>
  double Seconds(Queue queue) {
    Keep(cudaEventRecord(start_));
    Keep(queue());
    Keep(cudaEventRecord(end_));
    Keep(cudaEventSynchronize(end_));
    float milliseconds = 0;
    Keep(cudaEventElapsedTime(&milliseconds, start_, end_));
    return milliseconds / 1e3;
  }

 private:
  cudaError_t error_ = cudaSuccess;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
  std::vector<void*> blocks_;
};

// Everything of one container that a launch needs, on the GPU; jobs in the order of sections.
struct GpuChunks {
  Gpu gpu;
  codec::GpuProfile profile;
  std::vector<kernels::DecodeJob> jobs;
  kernels::DecodeLaunch launch;
  uint8_t* out = nullptr;

  GpuChunks(const codec::Encoder& encoder, const Kv& kv, const std::vector<uint8_t>& container)
      : profile(*encoder.profile()) {
    uint8_t* image = gpu.Bytes(profile.size());
    gpu.Copy(image, profile.ImageAt(image).data(), profile.size());
    uint8_t* bytes = gpu.Bytes(container.size() + 4);
    gpu.Copy(bytes, container.data(), container.size());
    const size_t pairs = encoder.profile()->frequencies().size();
    auto* turns = reinterpret_cast<kernels::Turn*>(gpu.Bytes(kTokens * pairs * 8));
    gpu.Keep(kernels::CudaFillTurns(profile.FrequenciesAt(image), pairs, kv.shape.position, kTokens,
                                    turns, nullptr));
    out = gpu.Bytes(kChunks * kv.bytes);
    const auto chunk = *codec::ParseHeader(container);
    uint8_t* to = out;
    for (uint32_t i = 0; i < kChunks * kv.shape.Sections(); ++i) {
      const uint32_t s = i % kv.shape.Sections();
      const auto tiles = *codec::SectionTiles::Find(container, chunk, s);
      const uint64_t row = kv.shape.Dim(s) * 2, token = row * kv.shape.heads;
      for (uint32_t t = 0; t < kv.shape.Tiles(); ++t) {
        const std::span<const uint8_t> tile = *tiles.At(t);
        const uint32_t first = t * codec::kTileTokens;
        jobs.push_back({profile.SectionAt(image, s),
                        bytes + (tile.data() - container.data()),
                        static_cast<uint32_t>(tile.size()),
                        kv.shape.TileTokens(t),
                        first,
                        chunk.header.lambda16,
                        turns + first * pairs,
                        {to, nullptr, 1, token, 0, row}});
      }
      to += kv.shape.SectionBytes(s);
    }
    uint8_t* on_gpu = gpu.Bytes(jobs.size() * sizeof jobs[0]);
    gpu.Copy(on_gpu, jobs.data(), jobs.size() * sizeof jobs[0]);
    launch.jobs = reinterpret_cast<const kernels::DecodeJob*>(on_gpu);
    launch.count = static_cast<uint32_t>(jobs.size());
    launch.tables = profile.DecodeTablesAt(image);
    launch.scratch_coefficients = profile.scratch_coefficients();
    launch.scratch =
        gpu.Bytes(jobs.size() * kernels::DecodeScratchBytes(launch.scratch_coefficients));
    launch.status = reinterpret_cast<kernels::TileStatus*>(gpu.Bytes(jobs.size() * 4));
  }

  // Whether all was decoded, the first and the last section as the CPU does.
  absl::Status Check(const Kv& kv, const codec::Decoder& decoder) {
    std::vector<kernels::TileStatus> statuses(launch.count);
    gpu.Copy(statuses.data(), launch.status, statuses.size() * sizeof statuses[0]);
    for (const auto status : statuses) {
      if (status != kernels::TileStatus::kDone) return absl::InternalError("GPU: a tile failed");
    }
    for (const uint32_t s : {0u, kv.shape.Sections() - 1}) {
      const uint64_t size = kv.shape.SectionBytes(s);
      std::vector<uint8_t> expected(size), got(size);
      if (absl::Status status = decoder.Section(s, expected.data()); !status.ok()) return status;
      gpu.Copy(got.data(), s == 0 ? out : out + kChunks * kv.bytes - size, size);
      if (got != expected) return absl::InternalError("GPU: other values than the CPU's");
    }
    return gpu.status();
  }
};

}  // namespace

absl::Status MeasureGpuDecode(const codec::Encoder& encoder, int32_t lambda16,
                              const std::string& name, std::vector<Row>* rows) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return absl::OkStatus();
  const Kv kv(kTokens);
  const auto container = encoder.Encode(kv.shape, lambda16, 4, 0, kv.pointers);
  if (!container.ok()) return container.status();
  const auto decoder = codec::Decoder::Make(*container, encoder.profile());
  if (!decoder.ok()) return decoder.status();
  GpuChunks chunks(encoder, kv, *container);
  Gpu& gpu = chunks.gpu;
  uint8_t* copy = gpu.Bytes(kChunks * kv.bytes);
  kernels::DecodeLaunch layer = chunks.launch;
  layer.count = 2 * kv.shape.Tiles();
  const uint64_t bytes[2] = {kChunks * kv.bytes, kv.bytes / kv.shape.layers};
  std::vector<Pair> pairs[2];
  for (int i = -1; i < kPairs && gpu.status().ok(); ++i) {  // the first pair warms up
    for (uint32_t one = 0; one < 2; ++one) {
      const double decoded = gpu.Seconds(
          [&] { return kernels::CudaDecodeTiles(one == 0 ? chunks.launch : layer, nullptr); });
      const double copied = gpu.Seconds(
          [&] { return cudaMemcpyAsync(copy, chunks.out, bytes[one], cudaMemcpyDefault); });
      const double gigabytes = static_cast<double>(bytes[one]) / 1e9;
      if (i >= 0) pairs[one].push_back({gigabytes / decoded, gigabytes / copied});
    }
  }
  if (absl::Status status = chunks.Check(kv, *decoder); !status.ok()) return status;
  for (uint32_t one = 0; one < 2; ++one) {
    const char* what = one == 0 ? "" : "_layer";
    rows->push_back(MakeRow(absl::StrCat("gpu_decode_", name, what), "GB/s", "copy within the GPU",
                            pairs[one]));
    rows->back().note =
        absl::StrFormat("%d tiles in a launch", one == 0 ? chunks.launch.count : layer.count);
  }
  return absl::OkStatus();
}

}  // namespace terrace::bench
