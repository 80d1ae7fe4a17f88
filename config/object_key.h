// Object identity (DESIGN section 4): a keyed BLAKE2b-256 chain over tokens.
//
// root = H(salt; "kv1", fingerprint)
// h_i  = H(salt; h_{i-1}, n as u32le, tokens as u32le, extra)
//
// Every chain step covers one *grain* (16 tokens). A chunk of up to 256 tokens is an object whose
// key is the chain value at its last grain, so chunk keys are a subsequence of the grain chain and
// two prompts share exactly the grains they have in common. Pure functions; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

inline constexpr int kGrainTokens = 16;

// 256-bit key. The bytes are uniformly distributed (a keyed hash), so any 8 of them hash well;
// engines that bring their own keys must have hashed them through OpaqueKey first.
struct ObjectKey {
  std::array<uint8_t, 32> bytes{};

  uint64_t Head64() const {
    uint64_t head;
    std::memcpy(&head, bytes.data(), sizeof head);
    return head;
  }
  bool IsZero() const { return *this == ObjectKey{}; }
  std::string ToHex() const;  // 64 lower-case digits
  // InvalidArgument unless `hex` is 64 hexadecimal digits.
  static absl::StatusOr<ObjectKey> FromHex(std::string_view hex);

  friend bool operator==(const ObjectKey& a, const ObjectKey& b) { return a.bytes == b.bytes; }
  friend auto operator<=>(const ObjectKey& a, const ObjectKey& b) { return a.bytes <=> b.bytes; }
};
static_assert(sizeof(ObjectKey) == 32);

// What a catalog keeps of the grain keys inside an object, to find how much of a prompt it shares:
// the first two bytes. One match in 65,536 is by chance, so the whole keys, which lie in the
// object's identity part, are compared before its bytes are used.
using GrainFilter = uint16_t;
inline GrainFilter FilterOf(const ObjectKey& grain) {
  return static_cast<GrainFilter>(grain.bytes[0] | grain.bytes[1] << 8);
}

// A tenant's secret: equal prompts of two tenants share no key.
using Salt = std::array<uint8_t, 32>;
// What must be equal for bytes to be interchangeable: see KvGeometry::ModelFingerprint.
using Fingerprint = std::array<uint8_t, 32>;

ObjectKey RootKey(const Salt& salt, const Fingerprint& fingerprint);
ObjectKey ChainKey(const Salt& salt, const ObjectKey& parent, absl::Span<const uint32_t> tokens,
                   std::string_view extra = {});
// The chain value after each full grain of `tokens` (tokens.size() / 16 keys; a remainder of fewer
// than 16 tokens is not part of any key).
std::vector<ObjectKey> GrainKeys(const Salt& salt, const ObjectKey& root,
                                 absl::Span<const uint32_t> tokens, std::string_view extra = {});
// Key for an engine's own identifier (a block hash, a session name), under salt and fingerprint.
ObjectKey OpaqueKey(const Salt& salt, const Fingerprint& fingerprint, std::string_view name);
// A derived salt: H(salt; "salt", name). Used for per-request cache salts.
Salt DeriveSalt(const Salt& salt, std::string_view name);

}  // namespace terrace
