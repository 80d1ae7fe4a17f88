// An array that grows without copying, in blocks of one huge page each where the kernel grants
// them: for tables of millions of small elements, which otherwise spend their time in page faults.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace terrace::kernels {

// Elements stay where they are until the array goes. Not thread-safe. Throws std::bad_alloc, as the
// standard containers do.
template <typename T>
class BlockArray {
 public:
  BlockArray() = default;
  BlockArray(const BlockArray&) = delete;
  BlockArray& operator=(const BlockArray&) = delete;
  ~BlockArray() {
    for (uint64_t i = 0; i < size_; ++i) (*this)[i].~T();
  }

  T& operator[](uint64_t i) { return blocks_[i / kPerBlock].get()[i % kPerBlock]; }
  const T& operator[](uint64_t i) const { return blocks_[i / kPerBlock].get()[i % kPerBlock]; }
  uint64_t size() const { return size_; }

  template <typename... Arguments>
  T& Append(Arguments&&... arguments) {
    return *new (Next()) T(std::forward<Arguments>(arguments)...);
  }

 private:
  static constexpr uint64_t kBlockBytes = uint64_t{2} << 20;
  static constexpr uint64_t kPerBlock = kBlockBytes / sizeof(T);
  struct Free {
    void operator()(T* block) const { std::free(block); }
  };

  T* Next() {
    if (size_ == blocks_.size() * kPerBlock) {
      void* block = std::aligned_alloc(kBlockBytes, kBlockBytes);
      if (block == nullptr) throw std::bad_alloc();
      madvise(block, kBlockBytes, MADV_HUGEPAGE);  // only a wish
      blocks_.emplace_back(static_cast<T*>(block));
    }
    return &(*this)[size_++];
  }

  std::vector<std::unique_ptr<T, Free>> blocks_;
  uint64_t size_ = 0;
};

}  // namespace terrace::kernels
