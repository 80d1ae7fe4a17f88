#include "codec/kv_rows.h"

#include <cstring>

#include "kernels/float_format.h"

namespace terrace::codec {
namespace {

// Calls run(offset in values within the section, channel, values) for each run of a token's values.
template <typename Run>
void ForEachRun(const KvShape& shape, uint32_t section, uint32_t token, Run run) {
  const uint32_t dim = shape.Dim(section);
  if (shape.order == KvOrder::kTokenMajor) {
    run(size_t{token} * shape.heads * dim, 0u, shape.heads * dim);
    return;
  }
  for (uint32_t h = 0; h < shape.heads; ++h) {
    run((size_t{h} * shape.tokens + token) * dim, h * dim, dim);
  }
}

}  // namespace

bool HasRows(Dtype dtype) {
  return dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBf16;
}

void ReadRow(const KvShape& shape, uint32_t section, const uint8_t* bytes, uint32_t token,
             float* row) {
  ForEachRun(shape, section, token, [&](size_t at, uint32_t channel, uint32_t count) {
    const auto* halves = reinterpret_cast<const uint16_t*>(bytes) + at;
    if (shape.dtype == Dtype::kF32) {
      std::memcpy(row + channel, bytes + 4 * at, size_t{4} * count);
    } else if (shape.dtype == Dtype::kBf16) {
      kernels::FloatsOfBf16(halves, count, row + channel);
    } else {
      kernels::FloatsOfF16(halves, count, row + channel);
    }
  });
}

void WriteRow(const KvShape& shape, uint32_t section, const float* row, uint32_t token,
              uint8_t* bytes) {
  ForEachRun(shape, section, token, [&](size_t at, uint32_t channel, uint32_t count) {
    auto* halves = reinterpret_cast<uint16_t*>(bytes) + at;
    if (shape.dtype == Dtype::kF32) {
      std::memcpy(bytes + 4 * at, row + channel, size_t{4} * count);
    } else if (shape.dtype == Dtype::kBf16) {
      kernels::Bf16sOfFloat(row + channel, count, halves);
    } else {
      kernels::F16sOfFloat(row + channel, count, halves);
    }
  });
}

void ReadRawRow(const KvShape& shape, uint32_t section, const uint8_t* bytes, uint32_t token,
                uint8_t* row) {
  const size_t value = DtypeBytes(shape.dtype);
  ForEachRun(shape, section, token, [&](size_t at, uint32_t channel, uint32_t count) {
    std::memcpy(row + channel * value, bytes + at * value, count * value);
  });
}

void WriteRawRow(const KvShape& shape, uint32_t section, const uint8_t* row, uint32_t token,
                 uint8_t* bytes) {
  const size_t value = DtypeBytes(shape.dtype);
  ForEachRun(shape, section, token, [&](size_t at, uint32_t channel, uint32_t count) {
    std::memcpy(bytes + at * value, row + channel * value, count * value);
  });
}

}  // namespace terrace::codec
