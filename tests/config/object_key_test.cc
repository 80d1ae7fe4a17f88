#include "config/object_key.h"

#include <gtest/gtest.h>

#include <numeric>

namespace terrace {
namespace {

Salt CountingSalt() {
  Salt salt;
  std::iota(salt.begin(), salt.end(), uint8_t{0});
  return salt;
}

Fingerprint CountingFingerprint() {
  Fingerprint fingerprint;
  std::iota(fingerprint.begin(), fingerprint.end(), uint8_t{100});
  return fingerprint;
}

std::vector<uint32_t> Tokens(uint32_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0u);
  return tokens;
}

// Expected values come from Python's hashlib.blake2b(key=salt, digest_size=32) over the encoding
// in the header, so a second implementation agrees with this one byte for byte.
TEST(ObjectKey, AgreesWithAnIndependentBlake2b) {
  const Salt salt = CountingSalt();
  const ObjectKey root = RootKey(salt, CountingFingerprint());
  EXPECT_EQ(root.ToHex(), "bc9f31eafa783e3ac13acc45add1eb42d20501c47a5af69b3613d50e2d7f8e98");
  const std::vector<ObjectKey> grains = GrainKeys(salt, root, Tokens(32));
  ASSERT_EQ(grains.size(), 2u);
  EXPECT_EQ(grains[0].ToHex(), "e3e859cf1349f7afb3f712c8511bb5949406d4e7a10c125f9573475023a2e84b");
  EXPECT_EQ(grains[1].ToHex(), "d0e2103ad9ea88c4cc9ca07376060e31d5c7ef8688836142d7bdb677a7a4c176");
  EXPECT_EQ(ChainKey(salt, root, {7, 4294967295u}, "x").ToHex(),
            "ea7dfad63271deef3de33e6d2ea06d372d68191eda792d9fac46009526d045f4");
  EXPECT_EQ(OpaqueKey(salt, CountingFingerprint(), "block-7").ToHex(),
            "8dfafde01048e9bdb119855187dccbf799739c5612d7e015508bbc1e8f528216");
  EXPECT_EQ(ObjectKey{DeriveSalt(salt, "alice")}.ToHex(),
            "2a514e6fdc49b2807795c950661181a5c072da63fc9c8978666b13576f5d4060");
}

TEST(ObjectKey, GrainKeysShareExactlyTheCommonPrefix) {
  const Salt salt = CountingSalt();
  const ObjectKey root = RootKey(salt, CountingFingerprint());
  std::vector<uint32_t> a = Tokens(64);
  std::vector<uint32_t> b = a;
  b[40] ^= 1;  // inside grain 2
  const std::vector<ObjectKey> keys_a = GrainKeys(salt, root, a);
  const std::vector<ObjectKey> keys_b = GrainKeys(salt, root, b);
  EXPECT_EQ(keys_a[0], keys_b[0]);
  EXPECT_EQ(keys_a[1], keys_b[1]);
  EXPECT_NE(keys_a[2], keys_b[2]);
  EXPECT_NE(keys_a[3], keys_b[3]) << "a later grain depends on every earlier token";
}

TEST(ObjectKey, GrainKeysIgnoreAnIncompleteGrain) {
  const Salt salt = CountingSalt();
  const ObjectKey root = RootKey(salt, CountingFingerprint());
  EXPECT_TRUE(GrainKeys(salt, root, {}).empty());
  EXPECT_TRUE(GrainKeys(salt, root, Tokens(15)).empty());
  EXPECT_EQ(GrainKeys(salt, root, Tokens(31)), GrainKeys(salt, root, Tokens(16)));
}

TEST(ObjectKey, EverySaltFingerprintAndExtraSeparatesKeys) {
  Salt other_salt = CountingSalt();
  other_salt[31] ^= 1;
  Fingerprint other_fingerprint = CountingFingerprint();
  other_fingerprint[0] ^= 1;
  const ObjectKey root = RootKey(CountingSalt(), CountingFingerprint());
  EXPECT_NE(root, RootKey(other_salt, CountingFingerprint()));
  EXPECT_NE(root, RootKey(CountingSalt(), other_fingerprint));
  const std::vector<uint32_t> tokens = Tokens(16);
  EXPECT_NE(ChainKey(CountingSalt(), root, tokens), ChainKey(other_salt, root, tokens));
  EXPECT_NE(ChainKey(CountingSalt(), root, tokens), ChainKey(CountingSalt(), root, tokens, "e"));
  EXPECT_NE(OpaqueKey(CountingSalt(), CountingFingerprint(), "a"),
            OpaqueKey(CountingSalt(), CountingFingerprint(), "b"));
  EXPECT_NE(DeriveSalt(CountingSalt(), "a"), DeriveSalt(CountingSalt(), "b"));
}

TEST(ObjectKey, HexRoundTripsInEitherCase) {
  const ObjectKey key = RootKey(CountingSalt(), CountingFingerprint());
  std::string upper = key.ToHex();
  for (char& c : upper) c = static_cast<char>(toupper(c));
  EXPECT_EQ(*ObjectKey::FromHex(key.ToHex()), key);
  EXPECT_EQ(*ObjectKey::FromHex(upper), key);
}

TEST(ObjectKey, BadHexIsRefusedAndTheCharacterNamed) {
  for (std::string_view bad : {"", "00", "0x"}) {
    EXPECT_EQ(ObjectKey::FromHex(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  std::string hex(64, 'a');
  hex[17] = 'g';
  const absl::Status status = ObjectKey::FromHex(hex).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("character 17"), std::string::npos) << status;
}

TEST(ObjectKey, ZeroIsRecognised) {
  EXPECT_TRUE(ObjectKey{}.IsZero());
  EXPECT_FALSE(RootKey(Salt{}, Fingerprint{}).IsZero());
}

}  // namespace
}  // namespace terrace
