// replay: how fast traces go through the eviction policies on one core, reading and parsing
// included, against a plain loop that reads the same lines and splits them at their commas. Seconds
// are CPU seconds of the one thread. And how much memory a trace that is ten times longer takes.
#include "replay/replay.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"

namespace terrace::bench {
namespace {

constexpr int kRounds = 7;
constexpr uint64_t kBar = 1'000'000;  // accesses a second
constexpr int kRepeats = 10;

std::string Traces() {
  const char* set = std::getenv("TERRACE_DATA");
  return set != nullptr ? set : absl::StrCat(TERRACE_SOURCE_DIR, "/../shared/data");
}

std::string Mooncake() { return Traces() + "/kv_traces/mooncake_conversation.jsonl"; }

double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Case {
  const char* name;
  std::string trace, lines;  // what is replayed, and its file of requests
  const char* policy;
  uint64_t capacity;
  bool in_objects;
  replay::Semantics semantics = replay::Semantics::kBlock;
  uint32_t window = 0;
};

// Accesses a second.
absl::StatusOr<double> Ours(const Case& of, uint64_t* accesses) {
  replay::ReplayJob job;
  job.trace = of.trace;
  job.policy = of.policy;
  job.simulator.capacity = of.capacity;
  job.simulator.capacity_in_objects = of.in_objects;
  job.simulator.semantics = of.semantics;
  job.window = of.window;
  const double start = CpuSeconds();
  const auto report = replay::Replay(job);
  if (!report.ok()) return report.status();
  *accesses = report->counts.accesses;
  return static_cast<double>(*accesses) / (CpuSeconds() - start);
}

// The same accesses a second, when lines are only split.
absl::StatusOr<double> Splitting(const Case& of, uint64_t accesses) {
  const double start = CpuSeconds();
  std::ifstream file(of.lines);
  uint64_t sum = 0;
  for (std::string line; std::getline(file, line);) {
    for (const char* at = line.c_str(); *at != '\0';) {
      char* end = nullptr;
      sum += std::strtoull(at, &end, 10);
      at = end == at ? at + 1 : end;
    }
  }
  if (sum == 0) return absl::NotFoundError(of.lines + ": no numbers in it; set TERRACE_DATA");
  return static_cast<double>(accesses) / (CpuSeconds() - start);
}

absl::StatusOr<Row> MeasureSpeed(const Case& of) {
  std::vector<Pair> pairs;
  for (int round = 0; round < kRounds; ++round) {
    uint64_t accesses = 0;
    const auto ours = Ours(of, &accesses);
    if (!ours.ok()) return ours.status();
    const auto reference = Splitting(of, accesses);
    if (!reference.ok()) return reference.status();
    pairs.push_back({*ours / 1e6, *reference / 1e6});
  }
  Row row = MakeRow(of.name, "M accesses/s", "splitting the lines", pairs);
  row.note = absl::StrCat("bar: ", kBar / 1'000'000, " M accesses/s on one core, parsing included");
  return row;
}

// The largest resident set of `terrace replay` of a file, in MiB.
absl::StatusOr<double> MemoryOf(const Context& context, const std::string& trace) {
  const std::string program = context.binary_dir + "/terrace";
  const pid_t child = fork();
  if (child == 0) {
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(nowhere, STDOUT_FILENO);
    execl(program.c_str(), "terrace", "replay", "--trace", trace.c_str(), "--policy", "lru",
          "--capacity-objects", "10000", nullptr);
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  if (child < 0 || wait4(child, &status, 0, &usage) != child || status != 0) {
    return absl::InternalError(program + " replay failed");
  }
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

absl::StatusOr<Row> MeasureMemory(const Context& context) {
  const std::string longer = context.scratch_dir + "/longer.jsonl";
  std::ofstream file(longer, std::ios::binary);
  for (int i = 0; i < kRepeats; ++i) file << std::ifstream(Mooncake(), std::ios::binary).rdbuf();
  file.close();
  if (!file) return absl::InternalError("cannot write " + longer);
  std::vector<Pair> pairs;
  for (int round = 0; round < 5; ++round) {
    const auto ours = MemoryOf(context, longer);
    if (!ours.ok()) return ours.status();
    const auto reference = MemoryOf(context, Mooncake());
    if (!reference.ok()) return reference.status();
    pairs.push_back({*ours, *reference});
  }
  std::filesystem::remove(longer);
  Row row = MakeRow("memory_of_a_trace_10x_as_long", "MiB", "the trace once", pairs);
  row.note = "largest resident set of terrace replay, lru, 10,000 objects";
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunReplay(const Context& context) {
  const std::string rag = Traces() + "/rag/ragpulse";
  const std::string requests = rag + "/0_trace.jsonl";
  const Case cases[] = {
      {"mooncake_lru", Mooncake(), Mooncake(), "lru", 10'000, true},
      {"mooncake_default", Mooncake(), Mooncake(), "default", 10'000, true,
       replay::Semantics::kPrefix},
      {"mooncake_default_window_64", Mooncake(), Mooncake(), "default", 10'000, true,
       replay::Semantics::kPrefix, 64},
      {"mooncake_min", Mooncake(), Mooncake(), "min", 10'000, true},
      {"ragpulse_lru", rag, requests, "lru", 200'000, false},
      {"ragpulse_default", rag, requests, "default", 200'000, false},
  };
  std::vector<Row> rows;
  for (const Case& of : cases) {
    Progress(absl::StrCat("replay: ", of.name));
    auto row = MeasureSpeed(of);
    if (!row.ok()) return row.status();
    rows.push_back(*std::move(row));
  }
  Progress("replay: memory");
  auto row = MeasureMemory(context);
  if (!row.ok()) return row.status();
  rows.push_back(*std::move(row));
  return rows;
}

}  // namespace terrace::bench
