// links: time until a stored prefix is back through links of several speeds, with the daemon
// choosing how it is encoded against every fixed way. KV and profiles are made up (Gaussian values,
// tests/support/codec_profile.h); the link is the NVMe tier with nvme.read_limit.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/large_chunk.h"
#include "bench/private_daemon.h"
#include "kernels/float_format.h"
#include "tests/support/codec_profile.h"

namespace terrace::bench {
namespace {

constexpr double kLinks[] = {0.25, 1, 4};  // GB/s
constexpr const char* kAuto = "auto";
constexpr const char* kWays[] = {kAuto,  "raw",      "lossless-fast", "lossless",
                                 "fast", "balanced", "archive"};
constexpr int kRounds = 7;
constexpr uint32_t kChunks = 16, kWarmUpChunks = 2;
constexpr int32_t kLambda16 = 12;  // about two bits a value

KvGeometry Geometry() {  // 16 KiB a token
  KvGeometry geometry = LargeGeometry();
  geometry.layers = 8;
  geometry.kv_heads = 4;
  return geometry;
}

uint64_t ChunkBytes() { return Geometry().Layout().PayloadBytes(kChunkTokens, 16); }

absl::Status WriteProfiles(const std::string& directory) {
  std::filesystem::create_directories(directory);
  const KvGeometry of = Geometry();
  const std::pair<const char*, codec::Transform> forms[] = {{"fast", codec::Transform::kChannel},
                                                            {"balanced", codec::Transform::kHead},
                                                            {"archive", codec::Transform::kLayer}};
  for (const auto& [name, transform] : forms) {
    const std::vector<uint8_t> profile = testing::MakeProfile(
        {.transform = transform,
         .layers = of.layers,
         .heads = of.kv_heads,
         .k_dim = of.head_dim,
         .v_dim = of.v_head_dim,
         .lowest_scale16 = 12,
         .scales16 = 1,
         .model_id = of.model_id,
         .points = {{.lambda16 = kLambda16, .bits_per_value = 2, .mean_kl = 0.01f}}});
    std::ofstream file(absl::StrCat(directory, "/", name, ".tkvp"), std::ios::binary);
    file.write(reinterpret_cast<const char*>(profile.data()),
               static_cast<std::streamsize>(profile.size()));
    if (!file) return absl::InternalError(absl::StrCat("cannot write to ", directory));
  }
  return absl::OkStatus();
}

std::vector<uint8_t> GaussianPayload() {
  std::vector<uint8_t> payload(ChunkBytes());
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 2);
  for (size_t i = 0; i < payload.size(); i += 2) {
    const uint16_t value = kernels::Bf16OfFloat(normal(random));
    std::memcpy(&payload[i], &value, sizeof value);
  }
  return payload;
}

// A daemon that encodes in one way, over a store of its own.
DaemonConfig Config(const std::string& profiles, const char* way, double link) {
  DaemonConfig config;
  config.host_bytes = AlignUp((kChunks + kWarmUpChunks + 2) * ChunkBytes(), kExtentAlignment);
  config.headroom_bytes = config.host_bytes;
  config.nvme_bytes = uint64_t{1} << 30;
  config.keep_directory = true;
  config.nvme_keys = absl::StrFormat("read_limit = %d\n", static_cast<int64_t>(link * 1e9));
  config.codec_keys = absl::StrCat("quality = \"balanced\"\nselect = \"", way, "\"\nprofiles = \"",
                                   profiles, "\"\n");
  return config;
}

struct Session {
  std::unique_ptr<PrivateDaemon> daemon;
  std::unique_ptr<Client> client;
  Model model;
};

absl::StatusOr<Session> Open(const Context& context, const std::string& name,
                             const DaemonConfig& config) {
  Session session;
  auto daemon = PrivateDaemon::Start(context, name, config);
  if (!daemon.ok()) return daemon.status();
  session.daemon = *std::move(daemon);
  if (absl::Status s = session.daemon->WaitPopulated(kChunks * ChunkBytes()); !s.ok()) return s;
  auto client = session.daemon->ConnectClient();
  if (!client.ok()) return client.status();
  session.client = *std::move(client);
  auto model = session.client->RegisterKv(Geometry());
  if (!model.ok()) return model.status();
  session.model = *std::move(model);
  return session;
}

// The link's speed is known from the first prompt on; the second is the one that is loaded.
absl::StatusOr<double> Store(const Context& context, const std::string& name,
                             const DaemonConfig& config, const std::vector<uint8_t>& payload) {
  auto session = Open(context, name, config);
  if (!session.ok()) return session.status();
  for (const auto& [number, chunks] : {std::pair{1u, kWarmUpChunks}, std::pair{100u, kChunks}}) {
    absl::Status status =
        StoreLarge(*session->client, session->model, LargePrompt(number, chunks), payload);
    if (status.ok()) status = session->client->Flush(120000);
    if (!status.ok()) return status;
  }
  const auto status = session->client->Status();
  if (!status.ok()) return status.status();
  std::map<std::string, uint64_t> counters(status->counters.begin(), status->counters.end());
  const double raw = static_cast<double>(counters["durable_bytes"]);
  return (raw - static_cast<double>(counters["encoded_from_bytes"] - counters["encoded_bytes"])) /
         raw;
}

// Seconds until every byte of the prompt is there, in a daemon that has just started.
absl::StatusOr<double> Load(const Context& context, const std::string& name,
                            const DaemonConfig& config) {
  auto session = Open(context, name, config);
  if (!session.ok()) return session.status();
  const auto match = session->client->MatchPrefix(session->model, LargePrompt(100, kChunks));
  if (!match.ok()) return match.status();
  if (match->chunks.size() != kChunks) return absl::InternalError("the prefix is not found");
  const double start = NowSeconds();
  auto lease = session->client->Acquire(session->model, *match);
  if (!lease.ok()) return lease.status();
  if (absl::Status s = lease->WaitAll(120000); !s.ok()) return s;
  return NowSeconds() - start;
}

absl::Status MeasureLink(const Context& context, double link, const std::string& profiles,
                         const std::vector<uint8_t>& payload, std::vector<Row>* rows) {
  std::map<std::string, std::vector<double>> milliseconds;
  std::map<std::string, double> sizes;
  const auto name = [link](const char* way) { return absl::StrCat("links-", link, "-", way); };
  for (const char* way : kWays) {
    Progress(absl::StrFormat("links: %g GB/s: storing, %s", link, way));
    const auto size = Store(context, name(way), Config(profiles, way, link), payload);
    if (!size.ok()) return size.status();
    sizes[way] = *size;
  }
  for (int round = 0; round < kRounds; ++round) {
    Progress(absl::StrFormat("links: %g GB/s: round %d of %d", link, round + 1, kRounds));
    for (size_t i = 0; i < std::size(kWays); ++i) {  // each as often first as last
      const char* way = kWays[(i + round) % std::size(kWays)];
      const auto seconds = Load(context, name(way), Config(profiles, way, link));
      if (!seconds.ok()) return seconds.status();
      milliseconds[way].push_back(*seconds * 1e3);
    }
  }
  for (const char* way : kWays) {
    std::filesystem::remove_all(absl::StrCat(context.scratch_dir, "/", name(way)));
  }
  std::string best, note;
  double best_ms = 0;
  for (const char* way : kWays) {
    const double median = Percentile(std::vector(milliseconds[way]), 50);
    absl::StrAppendFormat(&note, "%s%s %.1f ms at %.2f of the size", note.empty() ? "" : ", ", way,
                          median, sizes[way]);
    if (way == kAuto || (!best.empty() && median >= best_ms)) continue;
    best = way;
    best_ms = median;
  }
  std::vector<Pair> pairs;
  for (int i = 0; i < kRounds; ++i)
    pairs.push_back({milliseconds[kAuto][i], milliseconds[best][i]});
  rows->push_back(MakeRow(absl::StrFormat("chosen_%g_gb_s", link), "ms", best, pairs));
  rows->back().note = note;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunLinks(const Context& context) {
  const std::string profiles = context.scratch_dir + "/links-profiles";
  if (absl::Status status = WriteProfiles(profiles); !status.ok()) return status;
  const std::vector<uint8_t> payload = GaussianPayload();
  std::vector<Row> rows;
  for (double link : kLinks) {
    absl::Status status = MeasureLink(context, link, profiles, payload, &rows);
    if (!status.ok()) return status;
  }
  return rows;
}

}  // namespace terrace::bench
