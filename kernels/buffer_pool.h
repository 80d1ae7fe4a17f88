// Aligned buffers that are used again: the first touch of fresh memory costs several times what
// copying to it does. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/buffer.h"

namespace terrace::kernels {

class BufferPool;

// A buffer that goes back to its pool, which it keeps alive.
class PooledBuffer {
 public:
  PooledBuffer(std::shared_ptr<BufferPool> pool, AlignedBuffer buffer)
      : pool_(std::move(pool)), buffer_(std::move(buffer)) {}
  ~PooledBuffer();
  PooledBuffer(const PooledBuffer&) = delete;
  PooledBuffer& operator=(const PooledBuffer&) = delete;

  uint8_t* data() const { return buffer_.data(); }
  uint64_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  std::shared_ptr<BufferPool> pool_;
  AlignedBuffer buffer_;
};

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // Keeps at most so many bytes for later.
  explicit BufferPool(uint64_t keep_bytes) : keep_bytes_(keep_bytes) {}

  // At least `bytes` (1 or more), at most twice that when it was used before. The content is
  // undefined; data() is null when memory is short.
  std::unique_ptr<PooledBuffer> Take(uint64_t bytes);

 private:
  friend class PooledBuffer;
  void Give(AlignedBuffer buffer);

  const uint64_t keep_bytes_;
  std::mutex mutex_;
  std::vector<AlignedBuffer> free_;  // guarded by mutex_; the least recently used first
  uint64_t free_bytes_ = 0;          // guarded by mutex_
};

}  // namespace terrace::kernels
