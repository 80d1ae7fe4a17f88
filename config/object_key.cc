#include "config/object_key.h"

#include <sodium.h>

#include <bit>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little,
              "keys hash integers as little-endian and tokens are hashed in place");

// Picks libsodium's fastest BLAKE2b for this CPU, once and thread-safely. A failure would leave
// the portable implementation, which computes the same values.
void InitSodiumOnce() { [[maybe_unused]] static const int initialised = sodium_init(); }

// H of DESIGN section 4: BLAKE2b-256 keyed with a salt, fed field by field. Variable-length fields
// come last or behind their own length, so no two inputs share an encoding.
class KeyedHash {
 public:
  explicit KeyedHash(const Salt& salt) {
    InitSodiumOnce();
    crypto_generichash_init(&state_, salt.data(), salt.size(), 32);
  }
  KeyedHash& Add(const void* data, size_t bytes) {
    crypto_generichash_update(&state_, static_cast<const unsigned char*>(data), bytes);
    return *this;
  }
  KeyedHash& Add(std::string_view text) { return Add(text.data(), text.size()); }
  std::array<uint8_t, 32> Finish() {
    std::array<uint8_t, 32> digest;
    crypto_generichash_final(&state_, digest.data(), digest.size());
    return digest;
  }

 private:
  crypto_generichash_state state_;
};

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string ObjectKey::ToHex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size());
  for (uint8_t byte : bytes) {
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 15]);
  }
  return hex;
}

absl::StatusOr<ObjectKey> ObjectKey::FromHex(std::string_view hex) {
  ObjectKey key;
  if (hex.size() != 2 * key.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("key: ", hex.size(), " characters; expected 64 hexadecimal digits"));
  }
  for (size_t i = 0; i < key.bytes.size(); ++i) {
    const int high = HexValue(hex[2 * i]);
    const int low = HexValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) {
      return absl::InvalidArgumentError(absl::StrCat("key: not a hexadecimal digit at character ",
                                                     2 * i + (high < 0 ? 0 : 1),
                                                     "; expected 64 hexadecimal digits"));
    }
    key.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return key;
}

ObjectKey RootKey(const Salt& salt, const Fingerprint& fingerprint) {
  return {KeyedHash(salt).Add("kv1").Add(fingerprint.data(), fingerprint.size()).Finish()};
}

ObjectKey ChainKey(const Salt& salt, const ObjectKey& parent, absl::Span<const uint32_t> tokens,
                   std::string_view extra) {
  const uint32_t count = static_cast<uint32_t>(tokens.size());
  return {KeyedHash(salt)
              .Add(parent.bytes.data(), parent.bytes.size())
              .Add(&count, sizeof count)
              .Add(tokens.data(), tokens.size() * sizeof(uint32_t))
              .Add(extra)
              .Finish()};
}

std::vector<ObjectKey> GrainKeys(const Salt& salt, const ObjectKey& root,
                                 absl::Span<const uint32_t> tokens, std::string_view extra) {
  std::vector<ObjectKey> keys;
  keys.reserve(tokens.size() / kGrainTokens);
  ObjectKey parent = root;
  for (size_t start = 0; start + kGrainTokens <= tokens.size(); start += kGrainTokens) {
    parent = ChainKey(salt, parent, tokens.subspan(start, kGrainTokens), extra);
    keys.push_back(parent);
  }
  return keys;
}

ObjectKey OpaqueKey(const Salt& salt, const Fingerprint& fingerprint, std::string_view name) {
  return {
      KeyedHash(salt).Add("opaque").Add(fingerprint.data(), fingerprint.size()).Add(name).Finish()};
}

Salt DeriveSalt(const Salt& salt, std::string_view name) {
  return KeyedHash(salt).Add("salt").Add(name).Finish();
}

}  // namespace terrace
