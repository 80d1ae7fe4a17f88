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
#include "codec/section_writer.h"
#include "codec/tile_decoder.h"
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
  if (bytes.size() < 3) return;
  const uint32_t tokens = 1 + bytes[0] % terrace::codec::kTileTokens, section = bytes[1] % 2;
  const bool refined = bytes[1] & 2;
  const size_t finer_bytes = refined ? bytes.size() / 3 : 0;
  const std::vector<uint8_t> tile(bytes.begin() + 2,
                                  bytes.end() - static_cast<ptrdiff_t>(finer_bytes));
  const std::vector<uint8_t> finer(bytes.end() - static_cast<ptrdiff_t>(finer_bytes), bytes.end());
  const std::span<const uint8_t> tiles[] = {tile}, finers[] = {finer};
  const uint32_t heads = profile.heads(), dim = section == 0 ? profile.k_dim() : profile.v_dim();
  std::vector<uint8_t> out(size_t{tokens} * heads * dim * 2);
  const std::vector<float> turns(size_t{tokens} * profile.rotary_dim() / 2);
  terrace::codec::SectionOutput to{out.data(), terrace::Dtype::kBf16, heads, dim};
  to.token_stride = size_t{heads} * dim * 2;
  to.head_stride = size_t{dim} * 2;
  if (section == 0) {
    to.pairing = profile.pairing();
    to.rotary_dim = profile.rotary_dim();
  }
  to.cosines = to.sines = turns.data();
  (void)terrace::codec::TileDecoder(profile, section, -16, to)
      .Decode(0, tokens, tiles, {finers, refined ? 1u : 0u});
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

// What the lossless codecs are given and what becomes of it.
struct Lossless {
  const terrace::codec::CodecEntry* codec = nullptr;
  terrace::codec::KvShape shape;
  std::vector<std::vector<uint8_t>> sections;
  std::vector<uint8_t> container;
};

// A small chunk of the fuzzer's bytes, repeated with a change so that tiles have something to code.
Lossless LosslessOf(std::span<const uint8_t> bytes) {
  Lossless of;
  const auto codecs = terrace::codec::Codecs();
  of.codec = &codecs[bytes[0] % codecs.size()];
  if (of.codec->needs_profile) of.codec = &codecs[0];
  of.shape = {static_cast<terrace::Dtype>(1 + bytes[1] % 6),
              static_cast<terrace::KvOrder>(1 + bytes[1] / 6 % 2),
              1,
              1u + bytes[2] % 3,
              1u + bytes[2] / 3 % 9,
              1u + bytes[3] % 9,
              bytes[4] % 2u == 0 ? bytes[4] / 2u : 5u * (bytes[4] / 2u),
              0};
  const std::span<const uint8_t> values = bytes.subspan(5);
  std::vector<const uint8_t*> pointers;
  for (uint32_t s = 0; s < 2; ++s) {
    std::vector<uint8_t> section(of.shape.SectionBytes(s));
    for (size_t i = 0; i < section.size() && !values.empty(); ++i) {
      section[i] = static_cast<uint8_t>(values[i % values.size()] + i / values.size() % 3);
    }
    of.sections.push_back(std::move(section));
  }
  for (const auto& section : of.sections) pointers.push_back(section.data());
  auto container = of.codec->encode({of.shape, pointers});
  Check(container.ok());
  of.container = *std::move(container);
  return of;
}

void FuzzRoundTrip(std::span<const uint8_t> bytes) {
  if (bytes.size() < 5) return;
  const Lossless of = LosslessOf(bytes);
  const auto decoder = terrace::codec::Decoder::Make(of.container, nullptr);
  Check(decoder.ok());
  for (uint32_t s = 0; s < 2; ++s) {
    std::vector<uint8_t> out(of.sections[s].size());
    Check(decoder->Section(s, out.data()).ok());
    Check(out == of.sections[s]);
  }
}

// Tiles and tables that are partly the fuzzer's, in a container whose checksums match.
void FuzzLosslessTiles(std::span<const uint8_t> bytes) {
  if (bytes.size() < 16) return;
  const Lossless of = LosslessOf(bytes);
  const auto chunk = *terrace::codec::ParseHeader(of.container);
  const uint8_t* tables_at = of.container.data() + chunk.tables.offset;
  std::vector<uint8_t> tables(tables_at, tables_at + chunk.tables.bytes);
  const std::span<const uint8_t> changes = bytes.last(8);
  const auto change = [&changes](std::vector<uint8_t>* of, size_t start) {
    for (size_t i = 0; i + 1 < changes.size() && of->size() > start; i += 2) {
      (*of)[start + changes[i] % (of->size() - start)] ^= changes[i + 1];
    }
  };
  if (bytes[5] % 4 == 0) change(&tables, 0);
  std::vector<terrace::codec::SectionWriter> writers;
  for (uint32_t s = 0; s < 2; ++s) {
    writers.emplace_back(of.shape.Tiles());
    const auto tiles = terrace::codec::SectionTiles::Find(of.container, chunk, s);
    Check(tiles.ok());
    for (uint32_t t = 0; t < of.shape.Tiles(); ++t) {
      std::vector<uint8_t>* out = writers[s].Begin();
      const size_t start = out->size();
      const auto tile = *tiles->At(t);
      out->insert(out->end(), tile.begin(), tile.end());
      if (bytes[5] % 4 == 1) out->resize(start + bytes[6] % (tile.size() + 2));
      change(out, start);
      writers[s].End();
    }
  }
  const auto container =
      terrace::codec::Assemble({.codec = of.codec->id, .shape = of.shape}, writers, tables);
  const auto decoder = terrace::codec::Decoder::Make(container, nullptr);
  if (!decoder.ok()) return;
  for (uint32_t s = 0; s < 2; ++s) {
    std::vector<uint8_t> out(of.sections[s].size());
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
  switch (data[0] % 5) {
    case 0:
      FuzzProfile({rest.begin(), rest.end()});
      break;
    case 1:
      FuzzTile(*profile, rest);
      break;
    case 2:
      FuzzRoundTrip(rest);
      break;
    case 3:
      FuzzLosslessTiles(rest);
      break;
    default:
      FuzzContainer(profile, {rest.begin(), rest.end()});
      break;
  }
  return 0;
}
