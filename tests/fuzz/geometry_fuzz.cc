// Hostile model geometry and object shapes, as a client could declare them: what Validate and
// CheckObject accept must lay out without overlap, in order, aligned and within the payload limit.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "config/kv_geometry.h"

namespace {

using terrace::KvGeometry;
using terrace::ObjectLayout;
using terrace::PartSpan;

void Check(bool holds) {
  if (!holds) std::abort();
}

// Takes values off the front of the input; zeros once it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  template <typename T>
  T Take() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const size_t bytes = std::min(sizeof value, rest_.size());
    std::memcpy(&value, rest_.data(), bytes);
    rest_.remove_prefix(bytes);
    return value;
  }
  std::string TakeText() {
    const size_t bytes = std::min<size_t>(Take<uint8_t>(), rest_.size());
    std::string text(rest_.substr(0, bytes));
    rest_.remove_prefix(bytes);
    return text;
  }
  // Near the accepted range as often as anywhere in 32 bits.
  uint32_t TakeCount() { return Take<uint8_t>() % 2 == 0 ? Take<uint16_t>() : Take<uint32_t>(); }

 private:
  std::string_view rest_;
};

void CheckLayout(const ObjectLayout& layout, uint32_t token_count, uint32_t grain_count) {
  if (!layout.CheckObject(token_count, grain_count).ok()) return;
  const auto parts = layout.Parts(token_count, grain_count);
  Check(parts.size() == layout.PartCount() && parts.size() <= terrace::kMaxParts);
  uint64_t end = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    Check(parts[i].offset % terrace::kPartAlignment == 0);
    Check(parts[i].offset >= end && parts[i].offset < end + terrace::kPartAlignment);
    Check(i == 0 || parts[i].bytes == uint64_t{layout.part_bytes_per_token[i - 1]} * token_count);
    end = parts[i].offset + parts[i].bytes;
  }
  const uint64_t payload_bytes = layout.PayloadBytes(token_count, grain_count);
  Check(payload_bytes == terrace::AlignUp(end, terrace::kPartAlignment));
  Check(payload_bytes <= terrace::kMaxPayloadBytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint32_t token_count = input.TakeCount();
  const uint32_t grain_count =
      input.Take<uint8_t>() % 2 == 0 ? token_count / 16 : input.TakeCount();

  KvGeometry geometry;
  const absl::StatusOr<terrace::Dtype> dtype = terrace::ParseDtype(input.TakeText());
  geometry.dtype = dtype.ok() ? *dtype : static_cast<terrace::Dtype>(input.Take<uint8_t>());
  geometry.model_id = input.TakeText();
  geometry.order = static_cast<terrace::KvOrder>(input.Take<uint8_t>());
  geometry.layers = input.TakeCount();
  geometry.kv_heads = input.TakeCount();
  geometry.head_dim = input.TakeCount();
  geometry.v_head_dim = input.TakeCount();
  geometry.rope_theta = input.Take<double>();
  geometry.rope_scaling = input.TakeText();
  if (input.Take<uint8_t>() % 2 != 0) {
    geometry.tp_size = input.TakeCount();
    geometry.tp_rank = input.TakeCount();
    geometry.pp_size = input.TakeCount();
    geometry.pp_rank = input.TakeCount();
  }
  if (geometry.Validate().ok()) {
    const ObjectLayout layout = geometry.Layout();
    Check(layout.Validate().ok());
    Check(layout.CheckObject(terrace::kGrainTokens, 1).ok());  // one grain always fits
    CheckLayout(layout, token_count, grain_count);
  }

  // A layout straight from a client, with parts of any size.
  ObjectLayout raw;
  raw.kind = static_cast<terrace::ObjectKind>(input.Take<uint8_t>());
  const size_t count = input.Take<uint16_t>() % 512;
  for (size_t i = 0; i < count; ++i) raw.part_bytes_per_token.push_back(input.TakeCount());
  if (raw.Validate().ok()) CheckLayout(raw, token_count, grain_count);
  return 0;
}
