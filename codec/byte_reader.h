// Little-endian fields of untrusted bytes, read with bounds checked. Any thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace terrace::codec {

// Reads past the end give zeros and make ok() false, so that a parser checks once.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  T Read() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    Copy(&value, sizeof value);
    return value;
  }
  // Any count may be asked for: nothing is allocated for what is not there.
  template <typename T>
  std::vector<T> ReadArray(uint64_t count) {
    if (count > (bytes_.size() - at_) / sizeof(T)) {
      ok_ = false;
      return {};
    }
    std::vector<T> values(count);
    Copy(values.data(), count * sizeof(T));
    return values;
  }
  void Copy(void* to, size_t bytes) {
    if (bytes > bytes_.size() - at_) {
      ok_ = false;
      return;
    }
    if (bytes != 0) std::memcpy(to, bytes_.data() + at_, bytes);
    at_ += bytes;
  }
  void Skip(size_t bytes) {
    if (bytes > bytes_.size() - at_) {
      ok_ = false;
    } else {
      at_ += bytes;
    }
  }
  bool ok() const { return ok_; }
  size_t left() const { return bytes_.size() - at_; }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace terrace::codec
