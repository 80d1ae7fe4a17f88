#include "codec/value_words.h"

#include <cstring>

namespace terrace::codec {
namespace {

// Two's complement to sign and magnitude (that of -1 being 0) and back.
uint8_t Folded(uint8_t value) { return value & 0x80 ? value ^ 0x7f : value; }

}  // namespace

WordFormat WordFormatOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF16:
      return {0, 10};
    case Dtype::kF8E4M3:
      return {8, 11};
    case Dtype::kF8E5M2:
      return {8, 10};
    case Dtype::kI8:
      return {8, 12};
    case Dtype::kF32:
    case Dtype::kBf16:
      break;
  }
  return {0, 7};
}

void WordsOfValues(Dtype dtype, const uint8_t* values, size_t count, uint16_t* words,
                   uint8_t* low) {
  if (DtypeBytes(dtype) == 2) {
    if (count != 0) std::memcpy(words, values, 2 * count);
  } else if (dtype == Dtype::kF32) {
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(low + 2 * i, values + 4 * i, 2);
      std::memcpy(words + i, values + 4 * i + 2, 2);
    }
  } else {
    const bool folds = dtype == Dtype::kI8;
    for (size_t i = 0; i < count; ++i) {
      words[i] = static_cast<uint16_t>((folds ? Folded(values[i]) : values[i]) << 8);
    }
  }
}

void ValuesOfWords(Dtype dtype, const uint16_t* words, const uint8_t* low, size_t count,
                   uint8_t* values) {
  if (DtypeBytes(dtype) == 2) {
    if (count != 0) std::memcpy(values, words, 2 * count);
  } else if (dtype == Dtype::kF32) {
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(values + 4 * i, low + 2 * i, 2);
      std::memcpy(values + 4 * i + 2, words + i, 2);
    }
  } else {
    const bool folds = dtype == Dtype::kI8;
    for (size_t i = 0; i < count; ++i) {
      const auto value = static_cast<uint8_t>(words[i] >> 8);
      values[i] = folds ? Folded(value) : value;
    }
  }
}

}  // namespace terrace::codec
