// What the codec suite measures with: KV on pages of its own, and copies of as much.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "bench/bench.h"
#include "codec/chunk_codec.h"
#include "kernels/float_format.h"

namespace terrace::bench {

// On pages of its own, as KV is in shared memory.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
    std::memset(data_.get(), 1, bytes);
  }
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return bytes_; }

 private:
  struct Free {
    void operator()(uint8_t* data) const { std::free(data); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  size_t bytes_;
};

// Memory past the caches, so that a copy of it is a copy from memory to memory.
class Copy {
 public:
  explicit Copy(size_t bytes) : from_(bytes), to_(bytes) {}
  double Seconds() {
    const double start = NowSeconds();
    std::memcpy(to_.data(), from_.data(), to_.size());
    return NowSeconds() - start;
  }

 private:
  Pages from_, to_;
};

// Gaussian bfloat16: 16 KiB a token.
struct Kv {
  codec::KvShape shape{Dtype::kBf16, KvOrder::kTokenMajor, 4, 8, 128, 128, 0, 0};
  std::vector<Pages> sections;
  std::vector<const uint8_t*> pointers;
  uint64_t bytes = 0;

  explicit Kv(uint32_t tokens) {
    shape.tokens = tokens;
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 2);
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      sections.emplace_back(shape.SectionBytes(s));
      for (size_t i = 0; i < sections.back().size(); i += 2) {
        const uint16_t value = kernels::Bf16OfFloat(normal(random));
        std::memcpy(sections.back().data() + i, &value, sizeof value);
      }
      pointers.push_back(sections.back().data());
      bytes += sections.back().size();
    }
  }
};

// Rows decode_ and encode_ of each lossless codec (bench/lossless.cc).
absl::Status MeasureLossless(std::vector<Row>* rows);

#ifdef TERRACE_CUDA
// Rows gpu_decode_NAME, of many tiles in a launch, and gpu_decode_NAME_layer, of one layer's 64;
// none where there is no GPU (bench/gpu_codec.cc).
absl::Status MeasureGpuDecode(const codec::Encoder& encoder, int32_t lambda16,
                              const std::string& name, std::vector<Row>* rows);
#endif

}  // namespace terrace::bench
