// hints: what it saves to say ahead what will be read, and what it costs others to say it in vain.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>

#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kChunkBytes = 4 * kMiB;
constexpr uint64_t kPieceBytes = kMiB;  // nvme.piece_size
constexpr uint32_t kPrefixChunks = 16, kPrefixes = 4;
// One prefix and a half: loading one evicts the one before the last.
constexpr uint64_t kHostBytes = 96 * kMiB;
constexpr int kPairs = 9;
// Objects read on demand, more than memory holds, and as many that are hinted in vain.
constexpr uint32_t kWanted = 32, kUseless = 64;
constexpr int kFloodRounds = 6,
              kFloodPairs = 4;  // each with a daemon that has not learnt yet to ignore the flood

// A chunk of 256 tokens has 4 parts of 1 MiB.
KvGeometry Geometry() {
  KvGeometry geometry;
  geometry.model_id = "terrace-bench-hints";
  geometry.dtype = Dtype::kBf16;
  geometry.layers = 2;
  geometry.kv_heads = 16;
  geometry.head_dim = geometry.v_head_dim = 128;
  return geometry;
}

std::vector<uint32_t> PromptOf(uint32_t number, uint32_t chunks) {
  std::vector<uint32_t> tokens(size_t{chunks} * kChunkTokens);
  std::iota(tokens.begin(), tokens.end(), number * 100'000);
  return tokens;
}
std::vector<uint32_t> Prefix(uint32_t number) { return PromptOf(number, kPrefixChunks); }
std::vector<uint32_t> Single(uint32_t number) { return PromptOf(1000 + number, 1); }

struct Node {
  std::unique_ptr<PrivateDaemon> daemon;
  std::unique_ptr<Client> client;
  Model model;
};

absl::StatusOr<Node> StartNode(const Context& context) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.headroom_bytes = kHostBytes;
  config.nvme_bytes = 2048 * kMiB;
  config.nvme_keys = "admission = \"always\"\n";
  config.codec_keys = "select = \"raw\"\n";
  config.keep_directory = true;
  Node node;
  auto daemon = PrivateDaemon::Start(context, "hints", config);
  if (!daemon.ok()) return daemon.status();
  node.daemon = *std::move(daemon);
  if (absl::Status s = node.daemon->WaitPopulated(kHostBytes * 9 / 10); !s.ok()) return s;
  auto client = node.daemon->ConnectClient();
  if (!client.ok()) return client.status();
  node.client = *std::move(client);
  auto model = node.client->RegisterKv(Geometry());
  if (!model.ok()) return model.status();
  node.model = *std::move(model);
  return node;
}

absl::Status Store(Node& node, const std::vector<uint32_t>& tokens) {
  auto store = node.client->BeginStore(node.model, tokens);
  if (!store.ok()) return store.status();
  for (size_t chunk = 0; chunk < store->chunks().size(); ++chunk) {
    for (uint32_t part = 1; part < node.model.layout.PartCount(); ++part) {
      auto bytes = store->Buffer(chunk, part);
      if (!bytes.ok()) return bytes.status();
      uint64_t word = tokens[0] + chunk * 64 + part;
      for (size_t at = 0; at + 8 <= bytes->size(); at += 8) {
        word = word * 6364136223846793005u + 1442695040888963407u;
        std::memcpy(bytes->data() + at, &word, 8);
      }
    }
  }
  if (absl::Status s = store->Commit(); !s.ok()) return s;
  return node.client->Flush();
}

// Seconds until all of it may be read.
absl::StatusOr<double> Load(Node& node, const std::vector<uint32_t>& tokens) {
  const double start = NowSeconds();
  const auto match = node.client->MatchPrefix(node.model, tokens);
  if (!match.ok()) return match.status();
  if (match->matched_tokens != tokens.size()) return absl::InternalError("it is not stored");
  auto lease = node.client->Acquire(node.model, *match);
  if (!lease.ok()) return lease.status();
  if (absl::Status s = lease->WaitAll(); !s.ok()) return s;
  const double seconds = NowSeconds() - start;
  if (lease->usable_tokens() != tokens.size()) return absl::InternalError("not all was loaded");
  return seconds;
}

absl::StatusOr<uint32_t> InHost(Node& node, const std::vector<uint32_t>& tokens) {
  const auto match = node.client->MatchPrefix(node.model, tokens);
  if (!match.ok()) return match.status();
  return static_cast<uint32_t>(
      std::count_if(match->chunks.begin(), match->chunks.end(),
                    [](const ChunkMatch& chunk) { return chunk.info.tier == TierId::kHost; }));
}

absl::StatusOr<uint64_t> Counted(Node& node, const std::string& suffix) {
  const auto status = node.client->Status();
  if (!status.ok()) return status.status();
  uint64_t sum = 0;
  for (const auto& [name, value] : status->counters) {
    if (name.starts_with("prefetch_") && name.ends_with(suffix)) sum += value;
  }
  return sum;
}

// Announces the prefix and gives the daemon the time that an engine spends on other requests.
absl::Status HintAndWait(Node& node, const std::vector<uint32_t>& tokens) {
  ExpectedRead read;
  read.request_id = tokens[0];
  read.tokens = tokens;
  const auto report = node.client->Hint(node.model, {&read, 1});
  if (!report.ok()) return report.status();
  const double deadline = NowSeconds() + 5;
  while (NowSeconds() < deadline) {
    const auto there = InHost(node, tokens);
    if (!there.ok()) return there.status();
    if (*there == kPrefixChunks) return absl::OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return absl::OkStatus();  // the figures show it
}

absl::StatusOr<Row> HintedPrefix(const Context& context) {
  auto node = StartNode(context);
  if (!node.ok()) return node.status();
  std::vector<Pair> pairs;
  uint32_t next = 0;
  for (int i = -2; i < kPairs; ++i) {  // the first warm up
    Pair pair;
    for (int side = 0; side < 2; ++side) {
      const bool hinted = (side + i) % 2 == 0;
      const auto tokens = Prefix(next++ % kPrefixes);
      if (hinted) {
        if (absl::Status s = HintAndWait(*node, tokens); !s.ok()) return s;
      }
      const auto seconds = Load(*node, tokens);
      if (!seconds.ok()) return seconds.status();
      (hinted ? pair.ours : pair.reference) = *seconds * 1e3;
    }
    if (i >= 0) pairs.push_back(pair);
  }
  Row row = MakeRow("hints/64 MiB prefix on NVMe, hinted", "ms", "the same without a hint", pairs);
  const auto timely = Counted(*node, "_timely"), late = Counted(*node, "_late");
  if (!timely.ok() || !late.ok()) return absl::InternalError("status");
  row.note = absl::StrFormat("prefetches: %d timely, %d late", *timely, *late);
  return row;
}

absl::Status Flood(Node& node, Client& other, const Model& model, uint64_t round) {
  std::vector<std::vector<uint32_t>> prompts;
  std::vector<ExpectedRead> reads;
  for (uint32_t i = 0; i < kUseless; ++i) {
    prompts.push_back(Single(kWanted + (round * 17 + i) % kUseless));
    ExpectedRead read;
    read.kind = static_cast<HintKind>((round + i) % 4);
    read.request_id = i;
    read.tokens = prompts.back();
    reads.push_back(read);
  }
  const auto report = other.Hint(model, reads);
  if (!report.ok()) return report.status();
  std::this_thread::sleep_for(std::chrono::milliseconds(3));  // until it is at work
  return node.client->alive() ? absl::OkStatus() : absl::UnavailableError("terraced is gone");
}

// Demand reads while useless prefetches are under way, and while none are, by turns.
absl::Status FloodedRound(const Context& context, std::vector<Pair>& pairs, uint64_t& issued) {
  auto node = StartNode(context);
  if (!node.ok()) return node.status();
  auto other = node->daemon->ConnectClient();
  if (!other.ok()) return other.status();
  auto model = (*other)->RegisterKv(Geometry());
  if (!model.ok()) return model.status();
  std::vector<uint64_t> ids(kUseless);
  std::iota(ids.begin(), ids.end(), 0);
  uint32_t next = 0;
  for (int i = -1; i < kFloodPairs; ++i) {
    std::vector<double> flooded, quiet;
    for (int side = 0; side < 2; ++side) {
      const bool flood = (side + i) % 2 == 0;
      for (int sample = 0; sample < 5; ++sample) {
        if (flood) {
          if (absl::Status s = Flood(*node, **other, *model, next); !s.ok()) return s;
        }
        const auto seconds = Load(*node, Single(next++ % kWanted));
        if (!seconds.ok()) return seconds.status();
        (flood ? flooded : quiet).push_back(*seconds * 1e3);
      }
      if (const auto withdrawn = (*other)->Withdraw(ids); !withdrawn.ok()) {
        return withdrawn.status();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // what was cancelled ends
    }
    if (i >= 0) pairs.push_back({Percentile(flooded, 50), Percentile(quiet, 50)});
  }
  const auto count = Counted(*node, "_issued");
  if (!count.ok()) return count.status();
  issued += *count;
  return absl::OkStatus();
}

absl::StatusOr<Row> DemandUnderFlood(const Context& context) {
  std::vector<Pair> pairs;
  uint64_t issued = 0;
  for (int round = 0; round < kFloodRounds; ++round) {
    if (absl::Status s = FloodedRound(context, pairs, issued); !s.ok()) return s;
  }
  Row row =
      MakeRow("hints/4 MiB demand read under useless hints", "ms", "the same without hints", pairs);
  row.note = absl::StrFormat("%d useless prefetches; one piece more would be %.2fx", issued,
                             1 + static_cast<double>(kPieceBytes) / kChunkBytes);
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunHints(const Context& context) {
  {
    auto node = StartNode(context);
    if (!node.ok()) return node.status();
    for (uint32_t i = 0; i < kPrefixes; ++i) {
      if (absl::Status s = Store(*node, Prefix(i)); !s.ok()) return s;
    }
    for (uint32_t i = 0; i < kWanted + kUseless; ++i) {
      if (absl::Status s = Store(*node, Single(i)); !s.ok()) return s;
    }
  }
  auto hinted = HintedPrefix(context);
  if (!hinted.ok()) return hinted.status();
  auto flooded = DemandUnderFlood(context);
  if (!flooded.ok()) return flooded.status();
  return std::vector<Row>{*hinted, *flooded};
}

}  // namespace terrace::bench
