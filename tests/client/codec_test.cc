// Objects that the daemon encodes on their way to NVMe.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "codec/chunk_codec.h"
#include "kernels/float_format.h"
#include "tests/client/kv_fixture.h"
#include "tests/support/codec_profile.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

constexpr uint32_t kTokens = 256 + 256 + 48;
constexpr int32_t kLambda16 = -40;

KvGeometry Geometry(const std::string& model_id = "a model") {
  KvGeometry geometry = SmallGeometry(KvOrder::kHeadMajor);
  geometry.model_id = model_id;
  geometry.dtype = Dtype::kBf16;
  geometry.head_dim = 32;
  geometry.v_head_dim = 16;
  return geometry;
}

std::vector<uint8_t> ProfileOf(const KvGeometry& geometry, float mean_kl = 0.01f) {
  return testing::MakeProfile({.transform = codec::Transform::kHead,
                               .layers = geometry.layers,
                               .heads = geometry.kv_heads,
                               .k_dim = geometry.head_dim,
                               .v_dim = geometry.v_head_dim,
                               .model_id = geometry.model_id,
                               .points = {{kLambda16, 3.0f, mean_kl}}});
}

DaemonSettings Settings(const std::string& codec) {
  DaemonSettings settings;
  settings.nvme_bytes = uint64_t{256} << 20;
  settings.extra = "[codec]\n" + codec;
  return settings;
}

// The last part of an object is there a moment before the object is counted.
void ExpectDecoded(Client& client, uint64_t objects) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (Counter(client, "decoded_objects") < objects &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(Counter(client, "decoded_objects"), objects);
}

// Gaussian KV of a prompt, by chunk and part.
struct Kv {
  std::vector<uint32_t> tokens = Prompt(kTokens);
  std::vector<std::vector<std::vector<uint8_t>>> chunks;
  std::vector<uint32_t> begins, counts;
};

Kv Store(Client& client, const Model& model) {
  Kv kv;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  auto store = client.BeginStore(model, kv.tokens, {}, kPromptCostUs);
  EXPECT_TRUE(store.ok()) << store.status();
  for (size_t i = 0; i < store->chunks().size(); ++i) {
    const StoreChunk& chunk = store->chunks()[i];
    EXPECT_TRUE(chunk.needed);
    kv.begins.push_back(chunk.token_begin);
    kv.counts.push_back(chunk.token_count);
    auto& parts = kv.chunks.emplace_back();
    for (uint32_t part = 1; part < model.layout.PartCount(); ++part) {
      auto& bytes =
          parts.emplace_back(chunk.token_count * model.layout.part_bytes_per_token[part - 1]);
      for (size_t at = 0; at < bytes.size(); at += 2) {
        const uint16_t value = kernels::Bf16OfFloat(normal(random));
        std::memcpy(&bytes[at], &value, sizeof value);
      }
      const absl::Status written = store->Write(i, part, bytes.data(), bytes.size());
      EXPECT_TRUE(written.ok()) << written;
    }
  }
  EXPECT_TRUE(store->Commit().ok());
  const absl::Status flushed = client.Flush(60000);
  EXPECT_TRUE(flushed.ok()) << flushed;
  return kv;
}

// What the prompt's parts are when they come back; empty when they do not.
std::vector<std::vector<std::vector<uint8_t>>> Load(Client& client, const Model& model,
                                                    const Kv& kv) {
  const auto match = client.MatchPrefix(model, kv.tokens);
  EXPECT_TRUE(match.ok()) << match.status();
  if (match->chunks.empty()) return {};
  auto lease = client.Acquire(model, *match);
  EXPECT_TRUE(lease.ok()) << lease.status();
  if (!lease.ok() || !lease->WaitAll(60000).ok()) return {};
  std::vector<std::vector<std::vector<uint8_t>>> chunks;
  for (size_t i = 0; i < lease->usable_chunks(); ++i) {
    auto& parts = chunks.emplace_back();
    for (uint32_t layer = 0; layer < model.geometry.layers; ++layer) {
      for (const KvPart part : {KvPart::kK, KvPart::kV}) {
        const auto held = lease->Part(i, layer, part);
        EXPECT_TRUE(held.ok()) << held.status();
        parts.emplace_back(held->begin(), held->end());
      }
    }
  }
  return chunks;
}

// What the codec library makes of a chunk.
std::vector<std::vector<uint8_t>> ThroughTheCodec(const KvGeometry& geometry, const Kv& kv,
                                                  size_t chunk) {
  const auto profile = codec::Profile::Parse(ProfileOf(geometry));
  const auto encoder = codec::Encoder::Make(*profile);
  const codec::KvShape shape{geometry.dtype,    geometry.order,    geometry.layers,
                             geometry.kv_heads, geometry.head_dim, geometry.v_head_dim,
                             kv.counts[chunk],  kv.begins[chunk]};
  std::vector<const uint8_t*> sections;
  for (const auto& part : kv.chunks[chunk]) sections.push_back(part.data());
  const auto container =
      (*encoder)->Encode(shape, kLambda16, kv.begins[chunk] == 0 ? 4 : 0, 0, sections);
  const auto decoder = codec::Decoder::Make(*container, *profile);
  std::vector<std::vector<uint8_t>> out;
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    out.emplace_back(shape.SectionBytes(s));
    EXPECT_TRUE(decoder->Section(s, out.back().data()).ok());
  }
  return out;
}

void PutProfile(const std::string& directory, const std::vector<uint8_t>& profile) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/a.tkvp", std::ios::binary)
      .write(reinterpret_cast<const char*>(profile.data()),
             static_cast<std::streamsize>(profile.size()));
}

TEST(Codec, KvEncodedWithAProfileComesBackAsTheCodecDecodesItAfterSigkill) {
  DaemonProcess daemon(Settings("quality = \"balanced\"\nselect = \"balanced\"\n"));
  PutProfile(daemon.directory() + "/state/profiles", ProfileOf(Geometry()));
  daemon.Restart();
  Kv kv;
  {
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(Geometry());
    kv = Store(*client, *model);
    EXPECT_EQ(Counter(*client, "encoded_objects"), 3u);
    EXPECT_LT(Counter(*client, "encoded_bytes"), Counter(*client, "encoded_from_bytes"));
    EXPECT_TRUE(Load(*client, *model, kv) == kv.chunks);  // the host copy is as it was stored
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto model = client->RegisterKv(Geometry());
  const auto loaded = Load(*client, *model, kv);
  ASSERT_EQ(loaded.size(), 3u);
  for (size_t i = 0; i < loaded.size(); ++i) {
    EXPECT_TRUE(loaded[i] == ThroughTheCodec(Geometry(), kv, i)) << "chunk " << i;
    EXPECT_FALSE(loaded[i] == kv.chunks[i]);
  }
  ExpectDecoded(*client, 3);
  const auto verified = client->Verify();
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->corrupt, 0u);
}

TEST(Codec, WithoutItsProfileKvIsAMissUntilTheProfileIsBack) {
  DaemonProcess daemon(Settings("quality = \"balanced\"\nselect = \"balanced\"\n"));
  const std::string profiles = daemon.directory() + "/state/profiles";
  PutProfile(profiles, ProfileOf(Geometry()));
  daemon.Restart();
  Kv kv;
  {
    const auto client = daemon.Connect();
    kv = Store(*client, *client->RegisterKv(Geometry()));
  }
  daemon.Kill();
  std::filesystem::rename(profiles, profiles + ".away");
  daemon.Start();
  {
    const auto client = daemon.Connect();
    const auto model = client->RegisterKv(Geometry());
    EXPECT_TRUE(Load(*client, *model, kv).empty());
    EXPECT_TRUE(client->MatchPrefix(*model, kv.tokens)->chunks.empty());
  }
  daemon.Kill();
  std::filesystem::rename(profiles + ".away", profiles);
  daemon.Start();
  const auto client = daemon.Connect();
  EXPECT_EQ(Load(*client, *client->RegisterKv(Geometry()), kv).size(), 3u);
}

// Stores with that profile in the store's folder; the daemon has been restarted since.
void ExpectUnchanged(DaemonProcess& daemon, const std::vector<uint8_t>& profile) {
  PutProfile(daemon.directory() + "/state/profiles", profile);
  daemon.Restart();
  Kv kv;
  {
    const auto client = daemon.Connect();
    kv = Store(*client, *client->RegisterKv(Geometry()));
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  EXPECT_TRUE(Load(*client, *client->RegisterKv(Geometry()), kv) == kv.chunks);
}

TEST(Codec, AProfileOfAnotherModelIsNotUsed) {
  DaemonProcess daemon(Settings("quality = \"near\"\nselect = \"balanced\"\n"));
  ExpectUnchanged(daemon, ProfileOf(Geometry("another model"), 0.0005f));
}

TEST(Codec, AProfileThatLosesMoreThanIsAllowedIsNotUsed) {
  DaemonProcess daemon(Settings("quality = \"near\"\nselect = \"balanced\"\n"));
  ExpectUnchanged(daemon, ProfileOf(Geometry()));
}

TEST(Codec, KvIsSmallerBelowHostMemoryAndComesBackBitForBit) {
  for (const std::string select : {"lossless-fast", "lossless", "zstd", "auto"}) {
    DaemonProcess daemon(Settings(absl::StrCat("select = \"", select, "\"\n")));
    Kv kv;
    uint64_t encoded = 0;  // a short chunk may be longer encoded, and is not
    {
      const auto client = daemon.Connect();
      kv = Store(*client, *client->RegisterKv(Geometry()));
      encoded = Counter(*client, "encoded_objects");
      EXPECT_LE(Counter(*client, "encoded_bytes"), Counter(*client, "encoded_from_bytes"));
    }
    if (select != "auto") EXPECT_GE(encoded, 2u) << select;
    daemon.Restart();
    const auto client = daemon.Connect();
    EXPECT_TRUE(Load(*client, *client->RegisterKv(Geometry()), kv) == kv.chunks) << select;
    ExpectDecoded(*client, encoded);
  }
}

TEST(Codec, AModelThatNobodyCalibratedGetsAProfileOfItsFirstChunkThatIsKept) {
  DaemonProcess daemon(Settings("quality = \"balanced\"\nselect = \"balanced\"\n"));
  Kv kv;
  {
    const auto client = daemon.Connect();
    kv = Store(*client, *client->RegisterKv(Geometry()));
    EXPECT_EQ(Counter(*client, "encoded_objects"), 3u);
    EXPECT_LT(Counter(*client, "encoded_bytes"), Counter(*client, "encoded_from_bytes") / 2);
  }
  daemon.Restart();
  const auto client = daemon.Connect();
  const auto loaded = Load(*client, *client->RegisterKv(Geometry()), kv);
  ASSERT_EQ(loaded.size(), 3u);
  double error = 0, count = 0;
  for (size_t chunk = 0; chunk < 3; ++chunk) {
    for (size_t part = 0; part < loaded[chunk].size(); ++part) {
      for (size_t at = 0; at < loaded[chunk][part].size(); at += 2, ++count) {
        uint16_t a, b;
        std::memcpy(&a, &loaded[chunk][part][at], sizeof a);
        std::memcpy(&b, &kv.chunks[chunk][part][at], sizeof b);
        error += std::pow(kernels::FloatOfBf16(a) - kernels::FloatOfBf16(b), 2);
      }
    }
  }
  EXPECT_LT(std::sqrt(error / count), 0.25 * 2);  // of a standard deviation of 2
}

TEST(Codec, DamagedProfilesAreLeftAloneAndTheDaemonServes) {
  DaemonProcess daemon(Settings("quality = \"balanced\"\n"));
  std::vector<uint8_t> profile = ProfileOf(Geometry());
  profile[profile.size() / 2] ^= 1;
  PutProfile(daemon.directory() + "/state/profiles", profile);
  daemon.Restart();
  const auto client = daemon.Connect();
  ASSERT_NE(client, nullptr);
  EXPECT_NE(daemon.Log().find("a.tkvp was not taken up"), std::string::npos);
}

}  // namespace
}  // namespace terrace
