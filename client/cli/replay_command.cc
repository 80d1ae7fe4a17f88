// terrace replay: traces through the eviction policies, without a daemon.
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/cli/replay_rows.h"
#include "client/json_writer.h"
#include "config/text.h"
#include "replay/replay.h"
#include "tiers/eviction/registry.h"

namespace terrace::cli {
namespace {

using replay::Foresight;
using replay::ReplayJob;
using replay::ReplayReport;
using replay::Semantics;

constexpr uint64_t kMaxCapacity = uint64_t{1} << 48;
constexpr size_t kMaxRows = 10'000;

// The command line, checked.
struct Plan {
  std::vector<std::string> policies;
  std::vector<uint64_t> capacities;
  bool in_tokens = false;
  bool gap = false;  // lru and min are replayed, whether asked for or not
};

absl::StatusOr<std::vector<uint64_t>> ParseCapacities(const char* option, const std::string& text) {
  std::vector<uint64_t> capacities;
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    uint64_t value;
    if (!absl::SimpleAtoi(word, &value) || value == 0 || value > kMaxCapacity) {
      return absl::InvalidArgumentError(
          absl::StrCat(option, " '", word, "': expected a whole number from 1 to 2^48"));
    }
    capacities.push_back(value);
  }
  std::sort(capacities.begin(), capacities.end());
  capacities.erase(std::unique(capacities.begin(), capacities.end()), capacities.end());
  return capacities;
}

absl::StatusOr<std::vector<std::string>> ParsePolicies(const std::string& text) {
  std::vector<std::string> policies;
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    if (word == "all") {
      for (const PolicyEntry& entry : Policies()) policies.emplace_back(entry.name);
      continue;
    }
    // The registry knows the names, and says them.
    PolicyContext smallest;
    smallest.capacity_bytes = 1;
    const auto policy = NewPolicy({word.data(), word.size()}, smallest);
    if (!policy.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--policy: ", policy.status().message()));
    }
    policies.emplace_back(word);
  }
  std::vector<std::string> once;
  for (std::string& policy : policies) {
    if (std::find(once.begin(), once.end(), policy) == once.end()) once.push_back(policy);
  }
  return once;
}

absl::StatusOr<Plan> MakePlan(const ReplayCommand& command) {
  Plan plan;
  if (command.capacity_objects.empty() == command.capacity_tokens.empty()) {
    return absl::InvalidArgumentError(
        "give the size of the tier as one of --capacity-objects and --capacity-tokens");
  }
  plan.in_tokens = command.capacity_objects.empty();
  auto capacities = plan.in_tokens
                        ? ParseCapacities("--capacity-tokens", command.capacity_tokens)
                        : ParseCapacities("--capacity-objects", command.capacity_objects);
  if (!capacities.ok()) return capacities.status();
  plan.capacities = *std::move(capacities);
  auto policies = ParsePolicies(command.policy);
  if (!policies.ok()) return policies.status();
  plan.policies = *std::move(policies);
  plan.gap = command.gap;
  if (plan.policies.size() * plan.capacities.size() > kMaxRows) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxRows, " replays asked for"));
  }
  return plan;
}

// Where reading it again gives the same bytes again.
bool CanBeReadAgain(const std::string& trace) {
  struct stat status {};
  return stat(trace.c_str(), &status) != 0 || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode);
}

class Replays {
 public:
  Replays(const ReplayCommand& command, const Plan& plan) : plan_(plan) {
    job_.trace = command.trace;
    job_.trace_options.components = absl::StrSplit(command.component, ',');
    job_.simulator.semantics =
        command.semantics == "prefix" ? Semantics::kPrefix : Semantics::kBlock;
    job_.simulator.capacity_in_objects = !plan.in_tokens;
    job_.simulator.seed = command.seed;
    job_.window = command.window;
    job_.predictions = {.flip = command.flip, .seed = command.seed};
    std::error_code ignored;
    if (std::filesystem::is_regular_file(command.trace, ignored)) {
      trace_bytes_ = std::filesystem::file_size(command.trace, ignored);
    }
    job_.progress = [this](std::string_view pass, uint64_t bytes) { Show(pass, bytes); };
    table_ = {.trace = command.trace,
              .format = "",
              .semantics = command.semantics,
              .in_tokens = plan.in_tokens,
              .window = command.window,
              .rows = {}};
  }

  absl::StatusOr<ReplayTable> Run() {
    for (const uint64_t capacity : plan_.capacities) {
      job_.simulator.capacity = capacity;
      if (absl::Status status = RunSize(); !status.ok()) return status;
    }
    return std::move(table_);
  }

 private:
  absl::Status RunSize() {
    const size_t first = table_.rows.size();
    std::optional<Rates> lru, min;
    std::vector<std::string> policies = plan_.policies;
    const size_t asked = policies.size();
    for (const char* bound : {"lru", "min"}) {
      const bool is_asked = std::count(policies.begin(), policies.end(), bound) > 0;
      if (plan_.gap && !is_asked) policies.emplace_back(bound);
    }
    for (size_t i = 0; i < policies.size(); ++i) {
      job_.policy = policies[i];
      const auto report = replay::Replay(job_);
      if (!report.ok()) return report.status();
      if (plan_.in_tokens && report->trace.unit != replay::SizeUnit::kTokens) {
        return absl::InvalidArgumentError(
            "--capacity-tokens: a trace of experts has no tokens; use --capacity-objects");
      }
      ReplayRow row = RowOf(*report);
      if (row.policy == "lru") lru = row.rates();
      if (row.policy == "min") min = row.rates();
      if (i < asked) table_.rows.push_back(std::move(row));
    }
    if (!lru || !min) return absl::OkStatus();
    for (size_t i = first; i < table_.rows.size(); ++i) {
      table_.rows[i].lru = lru;
      table_.rows[i].min = min;
    }
    return absl::OkStatus();
  }

  ReplayRow RowOf(const ReplayReport& report) {
    table_.format = replay::TraceFormatName(report.trace.format);
    table_.has_tokens = report.trace.unit == replay::SizeUnit::kTokens;
    const replay::Counts& counts = report.counts;
    return {.policy = job_.policy,
            .capacity = job_.simulator.capacity,
            .requests = counts.requests,
            .accesses = counts.accesses,
            .hits = counts.hits,
            .tokens = counts.size,
            .token_hits = counts.hit_size,
            .evictions = counts.evictions,
            .bypassed = counts.bypassed,
            .seconds = report.seconds,
            .lru = {},
            .min = {}};
  }

  void Show(std::string_view pass, uint64_t bytes) {
    progress_.Show(
        absl::StrCat(job_.policy, " at ", HumanCount(job_.simulator.capacity), ": ", Sv(pass), " ",
                     trace_bytes_ > 0 ? Percent(bytes, trace_bytes_) : HumanBytes(bytes)));
  }

  const Plan& plan_;
  ReplayJob job_;
  ReplayTable table_;
  uint64_t trace_bytes_ = 0;  // 0: not known
  Progress progress_;
};

int UsageError(const GlobalOptions& options, const absl::Status& status) {
  const std::string text = absl::StrCat("replay: ", status.message());
  std::fprintf(stderr, "terrace: %s\n", text.c_str());
  if (options.json) {
    JsonWriter json;
    json.BeginObject().Field("error", text).Field("exit_code", static_cast<int>(kUsage));
    std::printf("%s\n", json.EndObject().text().c_str());
  }
  return kUsage;
}

// A file that is not there is no object that is not there: exit 1.
int ReplayFailed(const GlobalOptions& options, const absl::Status& status) {
  const absl::StatusCode code =
      status.code() == absl::StatusCode::kNotFound ? absl::StatusCode::kUnknown : status.code();
  return Fail(options, "replay", absl::Status(code, status.message()));
}

int RunTiers(const GlobalOptions& options, const ReplayCommand& command) {
  if (!command.capacity_objects.empty() || !command.capacity_tokens.empty() || command.gap ||
      !command.plot.empty()) {
    return UsageError(options, absl::InvalidArgumentError(
                                   "--tiers has sizes of its own; --capacity-objects, "
                                   "--capacity-tokens, --gap and --plot are for one tier"));
  }
  const auto policies = ParsePolicies(command.policy);
  if (!policies.ok()) return UsageError(options, policies.status());
  const auto text = ReplayTiers(options, command);
  if (!text.ok()) {
    const bool usage = absl::StartsWith(text.status().message(), "--tiers");
    return usage ? UsageError(options, text.status()) : ReplayFailed(options, text.status());
  }
  std::printf("%s", text->c_str());
  return kOk;
}

}  // namespace

std::string ReplayPolicies() {
  std::string text;
  for (const PolicyEntry& entry : Policies()) {
    absl::StrAppendFormat(&text, "  %-18s %s\n", Sv(entry.name), Sv(entry.what));
  }
  return text;
}

int RunReplay(const GlobalOptions& options, const ReplayCommand& command) {
  if (command.has_tiers) return RunTiers(options, command);
  const auto plan = MakePlan(command);
  if (!plan.ok()) return UsageError(options, plan.status());
  const bool once = plan->policies.size() * plan->capacities.size() == 1 && !plan->gap &&
                    replay::ForesightOf(plan->policies.front()) == Foresight::kNone;
  if (!once && !CanBeReadAgain(command.trace)) {
    return UsageError(options, absl::InvalidArgumentError(absl::StrCat(
                                   "--trace ", command.trace,
                                   ": this is read more than once, "
                                   "which a pipe cannot be; one policy that does not know the "
                                   "future, at one size, reads it once")));
  }
  const auto table = Replays(command, *plan).Run();
  if (!table.ok()) {
    return ReplayFailed(options, table.status());
  }
  const std::string text = options.json ? ReplayJson(*table) + "\n" : ReplayText(*table);
  std::printf("%s", text.c_str());
  std::fflush(stdout);
  return command.plot.empty() || PlotReplay(*table, command.plot) ? kOk : kError;
}

}  // namespace terrace::cli
