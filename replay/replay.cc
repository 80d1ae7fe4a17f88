#include "replay/replay.h"

#include <chrono>
#include <memory>
#include <utility>

#include "tiers/eviction/leaf_first.h"
#include "tiers/eviction/registry.h"
#include "tiers/eviction/window.h"

namespace terrace::replay {
namespace {

constexpr std::string_view kDefaultPolicy = "default";
constexpr uint64_t kRequestsBetweenReports = 4096;

// Tells `progress` how far the reader within is.
class ReportingReader final : public TraceReader {
 public:
  ReportingReader(std::unique_ptr<TraceReader> reader, const ReplayJob& job, std::string_view pass)
      : reader_(std::move(reader)), progress_(job.progress), pass_(pass) {}

  absl::StatusOr<bool> Next(Request& request) override {
    if (progress_ && requests_++ % kRequestsBetweenReports == 0) progress_(pass_, bytes_read());
    return reader_->Next(request);
  }
  const TraceInfo& info() const override { return reader_->info(); }
  uint64_t bytes_read() const override { return reader_->bytes_read(); }

 private:
  std::unique_ptr<TraceReader> reader_;
  const std::function<void(std::string_view, uint64_t)>& progress_;
  const std::string_view pass_;
  uint64_t requests_ = 0;
};

absl::StatusOr<std::unique_ptr<TraceReader>> Open(const ReplayJob& job, std::string_view pass) {
  auto reader = OpenTrace(job.trace, job.trace_options);
  if (!reader.ok()) return reader.status();
  return std::make_unique<ReportingReader>(*std::move(reader), job, pass);
}

// The numbers that a policy with foresight is told, an access each.
absl::StatusOr<NumberFile> LookAhead(const ReplayJob& job, const SimulatorOptions& options,
                                     Foresight foresight) {
  auto first = Open(job, "next uses");
  if (!first.ok()) return first.status();
  auto uses = ExactNextUses(**first);
  if (!uses.ok() || foresight == Foresight::kExactUses) return uses;
  auto second = Open(job, "predictions");
  if (!second.ok()) return second.status();
  if (foresight == Foresight::kDiscardBits) {
    return DiscardBits(NewExactSource(*std::move(second), *std::move(uses)), options,
                       job.predictions);
  }
  absl::Status status = PhaseBits(**second, options, job.predictions, *uses);
  if (!status.ok()) return status;
  return uses;
}

// A policy that takes no hints gets the window in front of it, if there is one.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(const ReplayJob& job,
                                                           const PolicyContext& context) {
  const bool takes_hints =
      job.policy == kDefaultPolicy || ForesightOf(job.policy) != Foresight::kNone;
  if (job.window == 0 || takes_hints) return NewPolicy(job.policy, context);
  PolicyContext within = context;
  within.prefixes = false;
  auto policy = NewPolicy(job.policy, within);
  if (!policy.ok()) return policy.status();
  auto windowed = NewWindow(*std::move(policy), {}, context);  // exact hints need no guard
  return context.prefixes ? NewLeafFirst(std::move(windowed)) : std::move(windowed);
}

}  // namespace

Foresight ForesightOf(std::string_view policy) {
  const auto has = [policy](std::string_view part) {
    return policy.find(part) != std::string_view::npos;
  };
  if (policy == "min") return Foresight::kExactUses;
  if (has("discard-bit")) return Foresight::kDiscardBits;
  if (has("phase-bit") || has("mark-predict")) return Foresight::kPhaseBits;
  return Foresight::kNone;
}

absl::StatusOr<ReplayReport> Replay(const ReplayJob& job) {
  auto reader = Open(job, "replay");
  if (!reader.ok()) return reader.status();
  ReplayReport report{.trace = (*reader)->info(), .counts = {}};
  SimulatorOptions options = job.simulator;
  options.layers = report.trace.layers;
  auto simulator = Simulator::Create(
      options, [&job](const PolicyContext& context) { return MakePolicy(job, context); });
  if (!simulator.ok()) return simulator.status();
  const Foresight foresight = ForesightOf(job.policy);
  std::unique_ptr<RequestSource> source;
  if (foresight == Foresight::kNone) {
    source = NewWindowSource(*std::move(reader), job.window);
  } else {
    auto numbers = LookAhead(job, options, foresight);
    if (!numbers.ok()) return numbers.status();
    source = NewExactSource(*std::move(reader), *std::move(numbers));
  }
  const auto start = std::chrono::steady_clock::now();
  KnownRequest request;
  while (true) {
    const auto more = source->Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    if (absl::Status status = (*simulator)->Serve(request); !status.ok()) return status;
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.counts = (*simulator)->counts();
  return report;
}

}  // namespace terrace::replay
