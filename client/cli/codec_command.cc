// terrace codec list|show|verify|bench: encoded KV and profiles in files, without a daemon.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/json_writer.h"
#include "codec/chunk_codec.h"
#include "config/text.h"

namespace terrace::cli {
namespace {

using codec::ChunkHeader;
using codec::KvShape;
using codec::ParsedChunk;
using codec::Profile;
using enum Table::Align;

constexpr uint64_t kMaxFileBytes = uint64_t{16} << 30;
constexpr uint64_t kMaxSectionBytes = uint64_t{1} << 30;  // far more than any model's
constexpr std::string_view kProfileMagic = "TKVPROF1";

absl::StatusOr<std::vector<uint8_t>> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (static_cast<uint64_t>(size) > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than 16 GiB"));
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  file.seekg(0);
  if (!bytes.empty() && !file.read(reinterpret_cast<char*>(bytes.data()), size)) {
    return absl::UnknownError(absl::StrCat(path, ": cannot be read"));
  }
  return bytes;
}

int Failed(const GlobalOptions& options, const char* what, const absl::Status& status) {
  // A file that is not there is no object that is not there: exit 1.
  const absl::Status plain(absl::IsNotFound(status) ? absl::StatusCode::kUnknown : status.code(),
                           status.message());
  return Fail(options, what, plain);
}

bool IsProfile(const std::vector<uint8_t>& bytes) {
  return bytes.size() >= kProfileMagic.size() &&
         std::memcmp(bytes.data(), kProfileMagic.data(), kProfileMagic.size()) == 0;
}

std::string Hex(const Fingerprint& hash) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(hash.data()), hash.size()});
}

const char* Name(codec::Transform transform) {
  switch (transform) {
    case codec::Transform::kChannel:
      return "a step a channel";
    case codec::Transform::kHead:
      return "a matrix a head";
    case codec::Transform::kLayer:
      return "a matrix a layer";
  }
  return "unknown";
}

const char* Name(kernels::RopePairing pairing) {
  switch (pairing) {
    case kernels::RopePairing::kNone:
      return "none";
    case kernels::RopePairing::kHalf:
      return "half";
    case kernels::RopePairing::kInterleaved:
      return "interleaved";
  }
  return "unknown";
}

std::string CodecName(codec::CodecId id) {
  const auto entry = codec::FindCodec(id);
  return entry.ok() ? std::string((*entry)->name) : absl::StrCat(static_cast<int>(id));
}

int ShowProfile(const GlobalOptions& options, const std::vector<uint8_t>& bytes) {
  const auto profile = Profile::Parse(bytes);
  if (!profile.ok()) return Failed(options, "codec show", profile.status());
  const Profile& of = **profile;
  if (options.json) {
    JsonWriter json(2);
    json.BeginObject()
        .Field("kind", "profile")
        .Field("name", of.name())
        .Field("model_id", of.model_id())
        .Field("hash", Hex(of.hash()))
        .Field("bytes", bytes.size())
        .Field("transform", Name(of.transform()))
        .Field("token_levels", of.levels())
        .Field("layers", of.layers())
        .Field("kv_heads", of.heads())
        .Field("k_dim", of.k_dim())
        .Field("v_dim", of.v_dim())
        .Field("rotary_pairs", Name(of.pairing()))
        .Field("rotary_dim", of.rotary_dim());
    json.Key("points").BeginArray();
    for (const codec::OperatingPoint& point : of.points()) {
      json.BeginObject()
          .Field("lambda16", point.lambda16)
          .Field("bits_per_value", double{point.bits_per_value})
          .Field("mean_kl", double{point.mean_kl})
          .EndObject();
    }
    json.EndArray().EndObject();
    std::printf("%s\n", json.text().c_str());
    return kOk;
  }
  std::printf("profile %s (%s)\n", of.name().c_str(), HumanBytes(bytes.size()).c_str());
  std::printf("hash      %s\n", Hex(of.hash()).c_str());
  std::printf("model     %s\n",
              of.model_id().empty() ? "any of this geometry" : of.model_id().c_str());
  std::printf("geometry  %u layers, %u KV heads, K %u, V %u\n", of.layers(), of.heads(), of.k_dim(),
              of.v_dim());
  std::printf("form      %s, %s token levels, rotation undone: %s\n", Name(of.transform()),
              of.levels() ? "with" : "without", Name(of.pairing()));
  if (of.points().empty()) return kOk;
  Table table({{"LAMBDA16", kRight}, {"BITS A VALUE", kRight}, {"MEAN KL", kRight}});
  for (const codec::OperatingPoint& point : of.points()) {
    table.AddRow({absl::StrCat(point.lambda16), absl::StrFormat("%.3f", point.bits_per_value),
                  absl::StrFormat("%.5f", point.mean_kl)});
  }
  std::printf("\n%s", table.Render().c_str());
  return kOk;
}

uint64_t KvBytes(const KvShape& shape) {
  uint64_t bytes = 0;
  for (uint32_t s = 0; s < shape.Sections(); ++s) bytes += shape.SectionBytes(s);
  return bytes;
}

double BitsAValue(uint64_t bytes, uint64_t kv_bytes, const KvShape& shape) {
  if (kv_bytes == 0) return 0;
  return 8.0 * static_cast<double>(bytes) * DtypeBytes(shape.dtype) / static_cast<double>(kv_bytes);
}

void PrintChunkJson(const ParsedChunk& chunk, uint64_t bytes) {
  const ChunkHeader& header = chunk.header;
  const KvShape& shape = header.shape;
  JsonWriter json(2);
  json.BeginObject()
      .Field("kind", "chunk")
      .Field("codec", CodecName(header.codec))
      .Field("bytes", bytes)
      .Field("kv_bytes", KvBytes(shape))
      .Field("bits_per_value", BitsAValue(bytes, KvBytes(shape), shape))
      .Field("dtype", DtypeName(shape.dtype))
      .Field("order", shape.order == KvOrder::kTokenMajor ? "token_major" : "head_major")
      .Field("layers", shape.layers)
      .Field("kv_heads", shape.heads)
      .Field("k_dim", shape.k_dim)
      .Field("v_dim", shape.v_dim)
      .Field("tokens", shape.tokens)
      .Field("position", shape.position)
      .Field("tables_bytes", chunk.tables.bytes);
  if (header.codec == codec::CodecId::kProfile) {
    json.Field("lambda16", header.lambda16)
        .Field("raw_head", header.raw_head)
        .Field("raw_tail", header.raw_tail)
        .Field("profile", Hex(header.profile));
  }
  json.Key("sections").BeginArray();
  for (const codec::SectionPlace& section : chunk.sections) {
    json.BeginObject().Field("offset", section.offset).Field("bytes", section.bytes).EndObject();
  }
  json.EndArray().EndObject();
  std::printf("%s\n", json.text().c_str());
}

void PrintChunkText(const ParsedChunk& chunk, uint64_t bytes) {
  const ChunkHeader& header = chunk.header;
  const KvShape& shape = header.shape;
  std::printf("chunk, codec %s: %s of %s, %.3f bits a value\n", CodecName(header.codec).c_str(),
              HumanBytes(bytes).c_str(), HumanBytes(KvBytes(shape)).c_str(),
              BitsAValue(bytes, KvBytes(shape), shape));
  std::printf("tokens    %u from position %llu, %u tiles\n", shape.tokens,
              static_cast<unsigned long long>(shape.position), shape.Tiles());
  std::printf(
      "geometry  %u layers, %u KV heads, K %u, V %u, %s, %s\n", shape.layers, shape.heads,
      shape.k_dim, shape.v_dim, std::string(DtypeName(shape.dtype)).c_str(),
      shape.order == KvOrder::kTokenMajor ? "[tokens, heads, dim]" : "[heads, tokens, dim]");
  if (header.codec == codec::CodecId::kProfile) {
    std::printf("profile   %s\nstep      2^(%d/16); %u tokens kept at the start, %u at the end\n",
                Hex(header.profile).c_str(), header.lambda16, header.raw_head, header.raw_tail);
  }
  Table table({{"LAYER", kRight},
               {"K AT", kRight},
               {"K BYTES", kRight},
               {"V AT", kRight},
               {"V BYTES", kRight}});
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    const codec::SectionPlace& k = chunk.sections[2 * layer];
    const codec::SectionPlace& v = chunk.sections[2 * layer + 1];
    table.AddRow({absl::StrCat(layer), absl::StrCat(k.offset), absl::StrCat(k.bytes),
                  absl::StrCat(v.offset), absl::StrCat(v.bytes)});
  }
  std::printf("\n%s", table.Render().c_str());
}

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Gaussian bfloat16 KV of 32 MiB: past most caches, and seconds for the slowest codec.
struct MadeUpKv {
  KvShape shape{Dtype::kBf16, KvOrder::kTokenMajor, 4, 8, 128, 128, 2048, 0};
  std::vector<std::vector<uint8_t>> sections, out;
  std::vector<const uint8_t*> pointers;
  uint64_t bytes = 0;

  MadeUpKv() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 2);
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      sections.emplace_back(shape.SectionBytes(s));
      out.emplace_back(shape.SectionBytes(s), 1);
      for (size_t i = 0; i < sections[s].size(); i += 2) {
        const float value = normal(random);
        std::memcpy(&sections[s][i], reinterpret_cast<const char*>(&value) + 2, 2);
      }
      pointers.push_back(sections[s].data());
      bytes += sections[s].size();
    }
  }
};

struct Speed {
  std::string name;
  double ratio = 0;                                                 // of the size
  std::vector<double> encode_s = {}, decode_s = {}, memcpy_s = {};  // of each round

  static double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }
};

absl::Status MeasureOnce(const codec::CodecEntry& entry, MadeUpKv& kv, Speed* speed) {
  auto start = Clock::now();
  const auto container = entry.encode({kv.shape, kv.pointers});
  if (!container.ok()) return container.status();
  speed->encode_s.push_back(SecondsSince(start));
  speed->ratio = static_cast<double>(container->size()) / static_cast<double>(kv.bytes);
  start = Clock::now();
  const auto decoder = codec::Decoder::Make(*container, nullptr);
  if (!decoder.ok()) return decoder.status();
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    const absl::Status status = decoder->Section(s, kv.out[s].data());
    if (!status.ok()) return status;
  }
  speed->decode_s.push_back(SecondsSince(start));
  if (kv.out != kv.sections) return absl::InternalError("did not give the values back");
  start = Clock::now();
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    std::memcpy(kv.out[s].data(), kv.pointers[s], kv.out[s].size());
  }
  speed->memcpy_s.push_back(SecondsSince(start));
  return absl::OkStatus();
}

void PrintSpeeds(const GlobalOptions& options, const MadeUpKv& kv,
                 const std::vector<Speed>& speeds) {
  const double gigabytes = static_cast<double>(kv.bytes) / 1e9;
  JsonWriter json(2);
  json.BeginObject().Field("kv_bytes", kv.bytes);
  json.Key("codecs").BeginArray();
  Table table({{"CODEC"},
               {"BITS A VALUE", kRight},
               {"ENCODE GB/S", kRight},
               {"DECODE GB/S", kRight},
               {"MEMCPY GB/S", kRight},
               {"DECODE / MEMCPY", kRight}});
  for (const Speed& speed : speeds) {
    const double encode = gigabytes / Speed::Median(speed.encode_s);
    const double decode = gigabytes / Speed::Median(speed.decode_s);
    const double copy = gigabytes / Speed::Median(speed.memcpy_s);
    json.BeginObject()
        .Field("name", speed.name)
        .Field("bits_per_value", 16 * speed.ratio)
        .Field("encode_gb_s", encode)
        .Field("decode_gb_s", decode)
        .Field("memcpy_gb_s", copy)
        .EndObject();
    table.AddRow({speed.name, absl::StrFormat("%.3f", 16 * speed.ratio),
                  absl::StrFormat("%.2f", encode), absl::StrFormat("%.2f", decode),
                  absl::StrFormat("%.2f", copy), absl::StrFormat("%.2f", decode / copy)});
  }
  json.EndArray().EndObject();
  if (options.json) {
    std::printf("%s\n", json.text().c_str());
    return;
  }
  std::printf("made-up Gaussian KV in bfloat16, %s, one thread; GB/s of KV\n\n%s",
              HumanBytes(kv.bytes).c_str(), table.Render().c_str());
}

}  // namespace

int RunCodecList(const GlobalOptions& options) {
  if (options.json) {
    JsonWriter json(2);
    json.BeginObject().Key("codecs").BeginArray();
    for (const codec::CodecEntry& entry : codec::Codecs()) {
      json.BeginObject()
          .Field("id", static_cast<int>(entry.id))
          .Field("name", entry.name)
          .Field("needs_profile", entry.needs_profile)
          .Field("summary", entry.summary)
          .EndObject();
    }
    json.EndArray().EndObject();
    std::printf("%s\n", json.text().c_str());
    return kOk;
  }
  Table table({{"ID", kRight}, {"CODEC"}, {"PROFILE"}, {"WHAT IT IS"}});
  for (const codec::CodecEntry& entry : codec::Codecs()) {
    table.AddRow({absl::StrCat(static_cast<int>(entry.id)), std::string(entry.name),
                  entry.needs_profile ? "needed" : "-", std::string(entry.summary)});
  }
  std::printf("%s", table.Render().c_str());
  return kOk;
}

int RunCodecShow(const GlobalOptions& options, const std::string& path) {
  const auto bytes = ReadFile(path);
  if (!bytes.ok()) return Failed(options, "codec show", bytes.status());
  if (IsProfile(*bytes)) return ShowProfile(options, *bytes);
  const auto chunk = codec::ParseHeader(*bytes);
  if (!chunk.ok()) return Failed(options, "codec show", chunk.status());
  if (options.json) {
    PrintChunkJson(*chunk, bytes->size());
  } else {
    PrintChunkText(*chunk, bytes->size());
  }
  return kOk;
}

int RunCodecVerify(const GlobalOptions& options, const CodecVerifyOptions& verify) {
  const auto bytes = ReadFile(verify.path);
  if (!bytes.ok()) return Failed(options, "codec verify", bytes.status());
  std::shared_ptr<const Profile> profile;
  if (!verify.profile.empty()) {
    const auto profile_bytes = ReadFile(verify.profile);
    if (!profile_bytes.ok()) return Failed(options, "codec verify", profile_bytes.status());
    auto parsed = Profile::Parse(*profile_bytes);
    if (!parsed.ok()) return Failed(options, "codec verify: --profile", parsed.status());
    profile = *std::move(parsed);
  }
  const auto decoder = codec::Decoder::Make(*bytes, profile);
  if (!decoder.ok()) return Failed(options, "codec verify", decoder.status());
  const KvShape& shape = decoder->header().shape;
  {
    Progress progress;
    std::vector<uint8_t> out;
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      progress.Show(absl::StrCat("decoding section ", s + 1, " of ", shape.Sections()));
      absl::Status status = absl::OkStatus();
      if (shape.SectionBytes(s) > kMaxSectionBytes) {
        status = absl::DataLossError(absl::StrCat("section ", s, ": larger than 1 GiB"));
      } else {
        out.resize(shape.SectionBytes(s));
        status = decoder->Section(s, out.data());
      }
      if (!status.ok()) return Failed(options, "codec verify", status);
    }
  }
  if (options.json) {
    JsonWriter json(2);
    json.BeginObject()
        .Field("file", verify.path)
        .Field("sections", shape.Sections())
        .Field("tiles", shape.Tiles())
        .Field("kv_bytes", KvBytes(shape))
        .EndObject();
    std::printf("%s\n", json.text().c_str());
  } else {
    std::printf("%s: ok, %u sections of %u tiles decode to %s\n", verify.path.c_str(),
                shape.Sections(), shape.Tiles(), HumanBytes(KvBytes(shape)).c_str());
  }
  return kOk;
}

int RunCodecBench(const GlobalOptions& options) {
  constexpr int kRounds = 5;
  MadeUpKv kv;
  std::vector<Speed> speeds;
  {
    Progress progress;
    for (const codec::CodecEntry& entry : codec::Codecs()) {
      if (entry.needs_profile) continue;
      speeds.push_back({.name = std::string(entry.name)});
      for (int round = 1; round <= kRounds; ++round) {
        progress.Show(absl::StrCat(Sv(entry.name), ": round ", round, " of ", kRounds));
        const absl::Status status = MeasureOnce(entry, kv, &speeds.back());
        if (!status.ok()) return Failed(options, "codec bench", status);
      }
    }
  }
  PrintSpeeds(options, kv, speeds);
  return kOk;
}

}  // namespace terrace::cli
