// mrc: the online miss-ratio curve against the exact one on two real traces, and what it costs an
// access.
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/json_fields.h"
#include "tests/support/exact_stack_distance.h"
#include "tiers/eviction/miss_ratio_curve.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kBytesPerToken = uint64_t{128} << 10;  // of an 8 B model in 16 bits
constexpr uint64_t kBlockBytes = 512 * kBytesPerToken;
constexpr uint64_t kMaxBytes = uint64_t{1} << 50;
constexpr double kErrorBar = 0.02;
constexpr double kMemoryBar = 1 << 20;
constexpr int kSizes = 400;
constexpr int kPairs = 7;

struct Use {
  uint64_t key;
  uint64_t bytes;
};
using Trace = std::vector<Use>;

std::string DataPath(const std::string& name) {
  const char* set = std::getenv("TERRACE_DATA");
  return absl::StrCat(set != nullptr ? set : TERRACE_SOURCE_DIR "/../shared/data", "/", name);
}

// Calls `row` with every line of JSON in the file, blank ones aside.
template <typename Fn>
absl::Status ForEachRow(const std::string& name, Fn row) {
  const std::string path = DataPath(name);
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat(path, " cannot be read; set TERRACE_DATA to the folder that holds ", name));
  }
  for (std::string line; std::getline(file, line);) {
    if (line.find_first_not_of(" \r") != std::string::npos) row(ParseJson(line));
  }
  return absl::OkStatus();
}

absl::StatusOr<Trace> ChatBlocks() {
  Trace trace;
  absl::Status read =
      ForEachRow("kv_traces/mooncake_conversation.jsonl", [&](const nlohmann::json& request) {
        if (const nlohmann::json* ids = Member(request, "hash_ids")) {
          for (const nlohmann::json& id : *ids) trace.push_back({id.get<uint64_t>(), kBlockBytes});
        }
      });
  if (!read.ok()) return read;
  return trace;
}

absl::StatusOr<Trace> RetrievedPassages() {
  absl::flat_hash_map<uint64_t, uint64_t> tokens;
  absl::Status read = ForEachRow("rag/ragpulse/2_passages.jsonl", [&](const nlohmann::json& row) {
    const auto id = Number(row, "passage_id"), length = Number(row, "token_length");
    if (id && length) tokens[static_cast<uint64_t>(*id)] = static_cast<uint64_t>(*length);
  });
  if (!read.ok()) return read;
  Trace trace;
  read = ForEachRow("rag/ragpulse/0_trace.jsonl", [&](const nlohmann::json& request) {
    const nlohmann::json* lists = Member(request, "hash_ids");
    const nlohmann::json* ids = lists == nullptr ? nullptr : Member(*lists, "passages_ids");
    if (ids == nullptr) return;
    for (const nlohmann::json& id : *ids) {
      const auto known = tokens.find(id.get<uint64_t>());
      const uint64_t length = known == tokens.end() ? 1 : known->second;
      trace.push_back({id.get<uint64_t>(), length * kBytesPerToken});
    }
  });
  if (!read.ok()) return read;
  return trace;
}

struct Errors {
  double mean = 0, most = 0, bytes_mean = 0;
};

Errors Compare(const MissRatioCurve& curve, ExactStackDistance& exact) {
  Errors errors;
  for (int i = 1; i <= kSizes; ++i) {
    const uint64_t size = exact.FootprintBytes() / kSizes * i;
    const double error = std::abs(curve.MissRatio(size) - exact.MissRatio(size));
    errors.mean += error / kSizes;
    errors.most = std::max(errors.most, error);
    errors.bytes_mean += std::abs(curve.ByteMissRatio(size) - exact.MissRatio(size, true)) / kSizes;
  }
  return errors;
}

// Rows about the error, with as many samples as the daemon uses and with an eighth of them, and
// about memory.
void MeasureErrors(const std::string& name, const Trace& trace, std::vector<Row>* rows) {
  ExactStackDistance exact(trace.size());
  for (const Use& use : trace) exact.Access(use.key, use.bytes);
  for (const uint32_t samples :
       {MissRatioCurve::kDefaultSamples, MissRatioCurve::kDefaultSamples / 8}) {
    MissRatioCurve curve(kMaxBytes, samples);
    for (const Use& use : trace) curve.Access(use.key, use.bytes);
    const Errors errors = Compare(curve, exact);
    const bool daemons = samples == MissRatioCurve::kDefaultSamples;
    const std::string suffix = daemons ? "" : absl::StrCat("_", samples);
    Row error = MakeRow(absl::StrCat(name, "_mean_error", suffix), "miss ratio", "the bar",
                        {{errors.mean, kErrorBar}});
    error.note = absl::StrFormat(
        "largest %.4f, by bytes %.4f; %d sizes up to all there is; %d accesses, %.1f%% of objects "
        "watched at the end",
        errors.most, errors.bytes_mean, kSizes, trace.size(), 100 * curve.sampling_rate());
    rows->push_back(std::move(error));
    if (daemons) {
      rows->push_back(MakeRow(absl::StrCat(name, "_memory"), "B", "the bar",
                              {{static_cast<double>(curve.MemoryBytes()), kMemoryBar}}));
    }
  }
}

// Nanoseconds an access, against counting accesses by key in a hash map.
void MeasureCost(const std::string& name, const Trace& trace, std::vector<Row>* rows) {
  const double accesses = static_cast<double>(trace.size());
  std::vector<Pair> pairs;
  for (int i = 0; i < kPairs; ++i) {
    MissRatioCurve curve(kMaxBytes);
    double start = NowSeconds();
    for (const Use& use : trace) curve.Access(use.key, use.bytes);
    const double ours = NowSeconds() - start;
    absl::flat_hash_map<uint64_t, uint64_t> counts;
    start = NowSeconds();
    for (const Use& use : trace) ++counts[use.key];
    const double reference = NowSeconds() - start;
    pairs.push_back({ours * 1e9 / accesses, reference * 1e9 / accesses});
  }
  rows->push_back(
      MakeRow(absl::StrCat(name, "_access"), "ns", "counting by key in a hash map", pairs));
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunMrc(const Context& /*context*/) {
  std::vector<Row> rows;
  const absl::StatusOr<Trace> chat = ChatBlocks();
  if (!chat.ok()) return chat.status();
  const absl::StatusOr<Trace> passages = RetrievedPassages();
  if (!passages.ok()) return passages.status();
  MeasureErrors("mooncake", *chat, &rows);
  MeasureErrors("ragpulse", *passages, &rows);
  MeasureCost("mooncake", *chat, &rows);
  MeasureCost("ragpulse", *passages, &rows);
  return rows;
}

}  // namespace terrace::bench
