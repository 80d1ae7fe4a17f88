// Owning memory aligned for O_DIRECT. Movable; freed on destruction.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <utility>

namespace terrace::kernels {

inline constexpr uint64_t kBufferAlignment = 4096;

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // `bytes` is rounded up to 4096. The content is undefined. data() is null when memory is short.
  explicit AlignedBuffer(uint64_t bytes)
      : size_bytes_((bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment),
        data_(static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, size_bytes_))) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : size_bytes_(std::exchange(other.size_bytes_, 0)),
        data_(std::exchange(other.data_, nullptr)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedBuffer() { std::free(data_); }

  uint8_t* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  uint64_t size_bytes_ = 0;
  uint8_t* data_ = nullptr;
};

}  // namespace terrace::kernels
