// How an object's payload is cut into parts: the one place where offsets are computed, used by the
// daemon, the client and the formats alike.
//
// A payload is: identity part (the 256-bit keys of all grains but the last, which is the object's
// own key; empty when the object has no grain chain), then the layout's parts in order (for KV:
// layer 0 K, layer 0 V, layer 1 K, ...). Every part starts on a 64-byte boundary. All sizes bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "config/object_key.h"

namespace terrace {

enum class ObjectKind : uint8_t { kKv = 1, kExpert = 2, kDocument = 3, kOpaque = 4 };
inline constexpr size_t kObjectKinds = 4;

inline constexpr uint64_t kPartAlignment = 64;
inline constexpr uint64_t kExtentAlignment = 4096;
inline constexpr uint32_t kMaxParts = 440;  // fits one 4 KiB record header
inline constexpr uint32_t kMaxChunkTokens = 4096;
inline constexpr uint64_t kMaxPayloadBytes = (uint64_t{4} << 30) - kPartAlignment;  // ends fit u32

// Where nobody knows what is before an object in its sequence.
inline constexpr uint32_t kUnknownPosition = 0xffffffffu;

struct PartSpan {
  uint64_t offset;  // from the start of the payload, multiple of 64
  uint64_t bytes;
};

// Part sizes of one kind of object. `fingerprint` names everything that decides what the bytes
// mean; objects with different fingerprints never match.
struct ObjectLayout {
  Fingerprint fingerprint{};
  ObjectKind kind = ObjectKind::kKv;
  // Bytes of each part for ONE token; the part holds token_count times that. Opaque objects and
  // experts use token_count 1.
  std::vector<uint32_t> part_bytes_per_token;

  // InvalidArgument naming the field: no parts, more than kMaxParts - 1, a part of zero bytes.
  absl::Status Validate() const;

  // Number of parts including the identity part, which is always part 0 (possibly empty).
  uint32_t PartCount() const { return static_cast<uint32_t>(part_bytes_per_token.size()) + 1; }
  // InvalidArgument when token_count or grain_count is out of range or the payload exceeds
  // kMaxPayloadBytes; checked arithmetic throughout.
  absl::Status CheckObject(uint32_t token_count, uint32_t grain_count) const;
  // All parts of an object (PartCount() entries) in payload order. Requires CheckObject() ok.
  std::vector<PartSpan> Parts(uint32_t token_count, uint32_t grain_count) const;
  // Payload length: end of the last part rounded up to 64. Requires CheckObject() ok.
  uint64_t PayloadBytes(uint32_t token_count, uint32_t grain_count) const;
};

// grain_count is 0 (opaque key) or token_count / 16.
inline uint64_t IdentityBytes(uint32_t grain_count) {
  return grain_count > 1 ? uint64_t{32} * (grain_count - 1) : 0;
}
inline uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace terrace
