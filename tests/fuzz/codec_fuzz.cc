// Hostile encoded KV: profiles, containers and tiles. Checksums are made to match first, so that
// what they protect is parsed.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "codec/chunk_codec.h"
#include "codec/profile_coder.h"
#include "tests/support/codec_profile.h"

namespace {

using terrace::codec::Profile;
using terrace::codec::Transform;

void Check(bool holds) {
  if (!holds) std::abort();
}

std::shared_ptr<const Profile> ProfileOf(Transform transform) {
  auto profile = Profile::Parse(terrace::testing::MakeProfile({.transform = transform}));
  Check(profile.ok());
  return *profile;
}

void FuzzProfile(std::vector<uint8_t> bytes) {
  if (bytes.size() < 24) return;
  std::memcpy(bytes.data(), "TKVPROF1\1\0\0\0", 12);
  terrace::testing::SealProfile(&bytes);
  const auto profile = Profile::Parse(bytes);
  if (!profile.ok()) return;
  Check((*profile)->layers() > 0 && (*profile)->heads() > 0);
  if (const auto step = (*profile)->StepFor(0.01)) {
    Check(!(*profile)->points().empty() && (*profile)->points().front().mean_kl <= 0.01);
    Check(*step >= (*profile)->points().front().lambda16);
    Check(*step <= (*profile)->points().back().lambda16);
  }
}

void FuzzTile(const Profile& profile, std::span<const uint8_t> bytes) {
  if (bytes.size() < 2) return;
  const uint32_t tokens = 1 + bytes[0] % terrace::codec::kTileTokens, section = bytes[1] % 2;
  const std::vector<uint8_t> tile(bytes.begin() + 2, bytes.end());
  terrace::codec::TileDecoder decoder;
  if (!decoder.Start(profile, section, -16, tokens, 2, tile).ok()) return;
  terrace::kernels::RansDecode(profile.tables(), decoder.shape(), {decoder.stream(), 1});
  if (!decoder.Finish().ok()) return;
  constexpr uint32_t kBatch = terrace::codec::TileDecoder::kBatch;
  std::vector<float> rows(size_t{kBatch} * profile.section(section).channels);
  for (uint32_t t = 0; t < tokens; t += kBatch) {
    decoder.Tokens(t, std::min(kBatch, tokens - t), rows.data());
  }
}

void FuzzContainer(const std::shared_ptr<const Profile>& profile, std::vector<uint8_t> bytes) {
  if (bytes.size() < 128) return;
  std::memcpy(bytes.data(), "TKVCHUNK\1\0\0\0\0\0\0\0", 16);
  uint32_t header_bytes;
  std::memcpy(&header_bytes, bytes.data() + 16, sizeof header_bytes);
  if (header_bytes > bytes.size()) return;
  std::memcpy(bytes.data() + 64, profile->hash().data(), profile->hash().size());
  const uint32_t crc = terrace::kernels::Crc32c(bytes.data(), header_bytes);
  std::memcpy(bytes.data() + 12, &crc, sizeof crc);
  const auto decoder = terrace::codec::Decoder::Make(bytes, profile);
  if (!decoder.ok()) return;
  for (uint32_t s = 0; s < decoder->header().shape.Sections(); ++s) {
    const uint64_t room = decoder->header().shape.SectionBytes(s);
    if (room > 1 << 20) continue;
    std::vector<uint8_t> out(room);
    (void)decoder->Section(s, out.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto head = ProfileOf(Transform::kHead), layer = ProfileOf(Transform::kLayer),
                    channel = ProfileOf(Transform::kChannel);
  if (size == 0) return 0;
  const std::span<const uint8_t> rest(data + 1, size - 1);
  const auto& profile = data[0] & 8 ? head : data[0] & 16 ? layer : channel;
  switch (data[0] % 3) {
    case 0:
      FuzzProfile({rest.begin(), rest.end()});
      break;
    case 1:
      FuzzTile(*profile, rest);
      break;
    default:
      FuzzContainer(profile, {rest.begin(), rest.end()});
      break;
  }
  return 0;
}
