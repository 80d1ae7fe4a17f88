// Between a section as an engine lays it out and rows of floats, a token each. Any thread.
#pragma once

#include <cstdint>

#include "codec/kv_shape.h"

namespace terrace::codec {

// Whether rows can be made of it: float32, float16 and bfloat16.
bool HasRows(Dtype dtype);

// row[channel] of one token of a section.
void ReadRow(const KvShape& shape, uint32_t section, const uint8_t* bytes, uint32_t token,
             float* row);
void WriteRow(const KvShape& shape, uint32_t section, const float* row, uint32_t token,
              uint8_t* bytes);

// A token's values as they are, heads next to each other.
void ReadRawRow(const KvShape& shape, uint32_t section, const uint8_t* bytes, uint32_t token,
                uint8_t* row);
void WriteRawRow(const KvShape& shape, uint32_t section, const uint8_t* row, uint32_t token,
                 uint8_t* bytes);

}  // namespace terrace::codec
