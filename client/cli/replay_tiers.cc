// terrace replay --tiers: a trace through HBM, host and NVMe, beside LRU over the same bytes.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/json_writer.h"
#include "config/size.h"
#include "config/text.h"
#include "replay/tiered.h"

namespace terrace::cli {
namespace {

using replay::HintMode;
using replay::TieredCounts;
using replay::TieredJob;
using replay::TieredReport;

absl::Status ParseNumber(std::string_view value, double low, double high, double* to) {
  if (!absl::SimpleAtod({value.data(), value.size()}, to) || !(*to >= low && *to <= high)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s': expected a number from %g to %g", Sv(value), low, high));
  }
  return absl::OkStatus();
}

// Bytes, or a share of the trace's distinct bytes.
absl::Status ParseRoom(std::string_view value, uint64_t* bytes, double* share) {
  const auto size = ParseSize(value);
  if (!size.ok()) return size.status();
  *bytes = size->bytes;
  *share = size->percent / 100.0;
  return absl::OkStatus();
}

absl::Status SetTierOption(std::string_view key, std::string_view value, TieredJob* job) {
  replay::TieredStoreOptions& store = job->store;
  double number = 0;
  absl::Status status;
  if (key == "hbm") return ParseRoom(value, &store.hbm_bytes, &job->hbm_share);
  if (key == "host") return ParseRoom(value, &store.host_bytes, &job->host_share);
  if (key == "pcie" || key == "nvme") {
    status = ParseNumber(value, 0.001, 10'000, &number);
    (key == "pcie" ? store.pcie : store.nvme).bytes_per_s = number * 1e9;
  } else if (key == "pcie-us" || key == "nvme-us") {
    status = ParseNumber(value, 0, 1e6, &number);
    (key == "pcie-us" ? store.pcie : store.nvme).latency_us = static_cast<uint64_t>(number);
  } else if (key == "unit") {
    const auto size = ParseSize(value);
    if (!size.ok()) return size.status();
    if (size->is_percent() || size->bytes == 0) {
      return absl::InvalidArgumentError("expected bytes, above 0");
    }
    store.unit_bytes = static_cast<double>(size->bytes);
  } else if (key == "token-us") {
    status = ParseNumber(value, 0, 1e6, &job->token_us);
  } else if (key == "layer-us") {
    status = ParseNumber(value, 0, 1e6, &job->layer_us);
  } else if (key == "victims") {
    status = ParseNumber(value, 0, 1, &store.victim_share);
  } else {
    return absl::InvalidArgumentError(
        "unknown; accepted: hbm, host, pcie, pcie-us, nvme, nvme-us, unit, token-us, layer-us, "
        "victims");
  }
  return status;
}

absl::StatusOr<TieredJob> MakeJob(const ReplayCommand& command) {
  TieredJob job;
  job.trace = command.trace;
  job.trace_options.components = absl::StrSplit(command.component, ',');
  job.hbm_share = 0.1;
  job.host_share = 0.2;
  job.store.seed = command.seed;
  job.window = command.window != 0 ? command.window : job.window;
  job.wrong = command.wrong_hints;
  job.backlog = command.backlog;
  if (command.hints != "off") {
    job.hints = command.hints == "queue" ? HintMode::kQueue : HintMode::kRandom;
  }
  for (const absl::string_view option : absl::StrSplit(command.tiers, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(option, absl::MaxSplits('=', 1));
    if (absl::Status status = SetTierOption(pair.first, pair.second, &job); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--tiers ", option, ": ", status.message()));
    }
  }
  if (job.hbm_share == 0 && job.store.hbm_bytes == 0) {
    return absl::InvalidArgumentError("--tiers hbm=0: expected 1% or more, or bytes");
  }
  return job;
}

struct Row {
  std::string policy, hints;
  TieredReport report;
};

void WriteCounters(const char* name, const std::array<PrefetchCounters, kHintSources>& of,
                   JsonWriter& json) {
  json.Key(name).BeginObject();
  for (size_t i = 0; i < kHintSources; ++i) {
    const PrefetchCounters& count = of[i];
    if (count.issued + count.shadow + count.refused == 0) continue;
    json.Key(HintSourceName(static_cast<HintSource>(i))).BeginObject();
    json.Field("issued", count.issued).Field("timely", count.timely).Field("late", count.late);
    json.Field("unused", count.unused).Field("cancelled", count.cancelled);
    json.Field("refused", count.refused).Field("pollution", count.pollution);
    json.Field("shadow", count.shadow).Field("issued_bytes", count.issued_bytes);
    json.Field("unused_bytes", count.unused_bytes).EndObject();
  }
  json.EndObject();
}

void WriteLink(const char* name, const replay::LinkCounts& link, JsonWriter& json) {
  json.Key(name).BeginObject();
  json.Field("demand_bytes", link.demand_bytes).Field("prefetch_bytes", link.prefetch_bytes);
  json.Field("write_bytes", link.write_bytes).Field("busy_s", link.busy_us / 1e6).EndObject();
}

void WriteRow(const Row& row, const TieredReport& lru, JsonWriter& json) {
  const TieredReport& report = row.report;
  const TieredCounts& counts = report.counts;
  json.BeginObject();
  json.Field("policy", row.policy).Field("hints", row.hints).Field("requests", report.requests);
  json.Field("stall_s", counts.stall_us / 1e6);
  json.Key("stall_vs_lru")
      .Double(static_cast<double>(counts.stall_us) / static_cast<double>(lru.counts.stall_us));
  json.Field("ttft_ms", report.ttft_us / 1e3).Field("ttft_p99_ms", report.ttft_p99_us / 1e3);
  json.Field("ttft_with_wait_ms", report.ttft_with_wait_us / 1e3);
  json.Field("accesses", counts.accesses).Field("hbm", counts.hbm).Field("joined", counts.joined);
  json.Field("host", counts.host).Field("nvme", counts.nvme).Field("created", counts.created);
  json.Field("bypassed", counts.bypassed).Field("down_bytes", counts.down_bytes);
  WriteLink("pcie", report.pcie, json);
  WriteLink("nvme_link", report.nvme, json);
  WriteCounters("to_hbm", report.to_hbm, json);
  WriteCounters("to_host", report.to_host, json);
  json.Key("victim_buffer").BeginObject();
  json.Field("held", counts.victims).Field("buckets", counts.buckets);
  json.Field("moved", counts.bucket_objects).Field("timely", counts.bucket_timely);
  json.Field("late", counts.bucket_late).EndObject();
  json.Field("virtual_s", report.virtual_us / 1e6).Field("seconds", report.seconds).EndObject();
}

std::string Json(const ReplayCommand& command, const std::vector<Row>& rows) {
  const TieredReport& lru = rows.front().report;
  JsonWriter json;
  json.BeginObject().Field("trace", command.trace);
  json.Field("format", replay::TraceFormatName(lru.trace.format));
  json.Field("working_set_bytes", lru.working_set_bytes).Field("hbm_bytes", lru.hbm_bytes);
  json.Field("host_bytes", lru.host_bytes).Key("rows").BeginArray();
  for (const Row& row : rows) WriteRow(row, lru, json);
  return json.EndArray().EndObject().text();
}

std::string Text(const std::vector<Row>& rows) {
  const TieredReport& lru = rows.front().report;
  std::string text =
      absl::StrCat("HBM ", HumanBytes(lru.hbm_bytes), ", host ", HumanBytes(lru.host_bytes));
  if (lru.working_set_bytes > 0) {
    absl::StrAppend(&text, " of ", HumanBytes(lru.working_set_bytes), " that the trace names");
  }
  absl::StrAppend(&text, "; ", HumanCount(lru.requests), " requests\n\n");
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"policy"},
               {"hints"},
               {"stall", kRight},
               {"vs lru", kRight},
               {"ttft", kRight},
               {"p99", kRight},
               {"in HBM", kRight},
               {"host", kRight},
               {"NVMe", kRight},
               {"PCIe", kRight},
               {"NVMe read", kRight},
               {"timely", kRight},
               {"late", kRight},
               {"unused", kRight},
               {"pollution", kRight}});
  for (const Row& row : rows) {
    const TieredReport& report = row.report;
    const TieredCounts& counts = report.counts;
    PrefetchCounters sum;
    for (const auto* of : {&report.to_hbm, &report.to_host}) {
      for (const PrefetchCounters& count : *of) {
        sum.timely += count.timely;
        sum.late += count.late;
        sum.unused += count.unused;
        sum.pollution += count.pollution;
      }
    }
    table.AddRow(
        {row.policy, row.hints, absl::StrFormat("%.3f s", counts.stall_us / 1e6),
         absl::StrFormat("%.3f", static_cast<double>(counts.stall_us) /
                                     static_cast<double>(lru.counts.stall_us)),
         absl::StrFormat("%.1f ms", report.ttft_us / 1e3),
         absl::StrFormat("%.1f ms", report.ttft_p99_us / 1e3), Percent(counts.hbm, counts.accesses),
         Percent(counts.host + counts.joined, counts.accesses),
         Percent(counts.nvme, counts.accesses),
         HumanBytes(report.pcie.demand_bytes + report.pcie.prefetch_bytes),
         HumanBytes(report.nvme.demand_bytes + report.nvme.prefetch_bytes), HumanCount(sum.timely),
         HumanCount(sum.late), HumanCount(sum.unused), HumanCount(sum.pollution)});
  }
  return absl::StrCat(text, table.Render(),
                      "\nhost: found there or on its way up; the rest of the accesses was new\n");
}

}  // namespace

absl::StatusOr<std::string> ReplayTiers(const GlobalOptions& options,
                                        const ReplayCommand& command) {
  auto job = MakeJob(command);
  if (!job.ok()) return job.status();
  std::vector<std::string> policies = absl::StrSplit(command.policy, ',', absl::SkipEmpty());
  Progress progress;
  std::vector<Row> rows;
  const auto run = [&](const std::string& policy, HintMode hints) -> absl::Status {
    job->store.policy = policy;
    job->hints = hints;
    job->progress = [&](uint64_t bytes) {
      progress.Show(absl::StrCat(policy, ": ", HumanBytes(bytes), " of the trace"));
    };
    auto report = replay::ReplayTiers(*job);
    if (!report.ok()) return report.status();
    rows.push_back({policy, hints == HintMode::kOff ? "off" : command.hints, *std::move(report)});
    return absl::OkStatus();
  };
  const HintMode asked = job->hints;
  if (absl::Status status = run("lru", HintMode::kOff); !status.ok()) return status;
  for (const std::string& policy : policies) {
    if (policy == "lru" && asked == HintMode::kOff) continue;  // that is the first row
    if (absl::Status status = run(policy, asked); !status.ok()) return status;
  }
  progress.Show("");
  return options.json ? Json(command, rows) + "\n" : Text(rows);
}

}  // namespace terrace::cli
