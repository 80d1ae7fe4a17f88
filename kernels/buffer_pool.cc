#include "kernels/buffer_pool.h"

#include <utility>

namespace terrace::kernels {

PooledBuffer::~PooledBuffer() { pool_->Give(std::move(buffer_)); }

std::unique_ptr<PooledBuffer> BufferPool::Take(uint64_t bytes) {
  AlignedBuffer buffer;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = free_.size(); i-- > 0;) {
      if (free_[i].size_bytes() < bytes || free_[i].size_bytes() > 2 * bytes + kBufferAlignment) {
        continue;
      }
      buffer = std::move(free_[i]);
      free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
      free_bytes_ -= buffer.size_bytes();
      break;
    }
  }
  if (buffer.data() == nullptr) buffer = AlignedBuffer(bytes);
  return std::make_unique<PooledBuffer>(shared_from_this(), std::move(buffer));
}

void BufferPool::Give(AlignedBuffer buffer) {
  std::vector<AlignedBuffer> dropped;  // freed without the lock
  std::lock_guard<std::mutex> lock(mutex_);
  if (buffer.data() == nullptr || buffer.size_bytes() > keep_bytes_) return;
  free_bytes_ += buffer.size_bytes();
  free_.push_back(std::move(buffer));
  while (free_bytes_ > keep_bytes_) {
    free_bytes_ -= free_.front().size_bytes();
    dropped.push_back(std::move(free_.front()));
    free_.erase(free_.begin());
  }
}

}  // namespace terrace::kernels
