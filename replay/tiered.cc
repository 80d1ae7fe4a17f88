#include "replay/tiered.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"

namespace terrace::replay {

namespace {

// Distinct bytes of a trace.
absl::StatusOr<uint64_t> WorkingSet(const TieredJob& job) {
  auto reader = OpenTrace(job.trace, job.trace_options);
  if (!reader.ok()) return reader.status();
  absl::flat_hash_set<uint64_t> seen;
  double units = 0;
  Request request;
  for (uint64_t requests = 0; job.max_requests == 0 || requests < job.max_requests; ++requests) {
    const auto more = (*reader)->Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (const Access& access : request.accesses) {
      if (seen.insert(access.key).second) units += static_cast<double>(access.size);
    }
  }
  return static_cast<uint64_t>(units * job.store.unit_bytes);
}

// The requests of a trace, the next ones announced as an engine would that knows its queue.
class Engine {
 public:
  Engine(const TieredJob& job, TraceReader& reader, TieredStore& store)
      : job_(job), reader_(reader), store_(store), random_(job.store.seed) {}

  absl::Status Run(TieredReport& report);

 private:
  struct Waiting {
    Request request;
    uint64_t number;
    std::vector<AnnouncedKey> hints;
  };

  absl::Status Fill();
  absl::Status Announce(Waiting& waiting);
  absl::StatusOr<uint64_t> Serve(const Request& request);
  absl::StatusOr<uint64_t> ServeLayers(const Request& request);

  const TieredJob& job_;
  TraceReader& reader_;
  TieredStore& store_;
  std::mt19937_64 random_;
  bool ended_ = false;
  uint64_t read_ = 0;
  std::deque<Waiting> queue_;
  // Whatever was named so far, for hints that are wrong.
  std::vector<uint64_t> keys_;
  absl::flat_hash_set<uint64_t> known_;
};

absl::Status Engine::Fill() {
  const size_t ahead = job_.hints == HintMode::kOff ? 1 : job_.window + size_t{1};
  while (!ended_ && queue_.size() < ahead) {
    if (job_.max_requests != 0 && read_ == job_.max_requests) {
      ended_ = true;
      break;
    }
    Waiting waiting;
    const auto more = reader_.Next(waiting.request);
    if (!more.ok()) return more.status();
    ended_ = !*more;
    if (ended_) break;
    waiting.number = ++read_;
    queue_.push_back(std::move(waiting));
    if (job_.hints == HintMode::kOff) continue;
    if (absl::Status status = Announce(queue_.back()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Engine::Announce(Waiting& waiting) {
  std::uniform_real_distribution<double> chance(0, 1);
  for (const Access& access : waiting.request.accesses) {
    if (known_.insert(access.key).second) keys_.push_back(access.key);
  }
  for (const Access& access : waiting.request.accesses) {
    const bool wrong = job_.hints == HintMode::kRandom || chance(random_) < job_.wrong;
    const uint64_t key = wrong ? keys_[random_() % keys_.size()] : access.key;
    waiting.hints.push_back({key, job_.confidence});
  }
  const bool experts = reader_.info().unit == SizeUnit::kExperts;
  Announcement announcement;
  announcement.source = experts ? HintSource::kExperts : HintSource::kQueue;
  announcement.request = waiting.number;
  announcement.queue = 1;
  announcement.order = waiting.number;
  announcement.keys = waiting.hints;
  // Not in the queue yet: its engine knows when it comes.
  if (!job_.backlog && reader_.info().timed && waiting.request.time_us > store_.now()) {
    announcement.eta = waiting.request.time_us;
  }
  return store_.Announce(announcement);
}

// The time to compute, with all in HBM.
absl::StatusOr<uint64_t> Engine::Serve(const Request& request) {
  const auto found = store_.Demand(request.accesses);
  if (!found.ok()) return found.status();
  const uint64_t reused = std::min(*found, request.input_tokens);
  const auto compute =
      static_cast<uint64_t>(static_cast<double>(request.input_tokens - reused) * job_.token_us);
  store_.RunUntil(store_.now() + compute);
  store_.Finish(request.accesses);
  return compute;
}

absl::StatusOr<uint64_t> Engine::ServeLayers(const Request& request) {
  uint64_t compute = 0;
  const absl::Span<const Access> all = request.accesses;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    while (end < all.size() && all[end].depth == all[begin].depth) ++end;
    const auto layer = all.subspan(begin, end - begin);
    if (const auto found = store_.Demand(layer); !found.ok()) return found.status();
    store_.RunUntil(store_.now() + static_cast<uint64_t>(job_.layer_us));
    store_.Finish(layer);
    compute += static_cast<uint64_t>(job_.layer_us);
  }
  return compute;
}

absl::Status Engine::Run(TieredReport& report) {
  const bool experts = reader_.info().unit == SizeUnit::kExperts;
  std::vector<uint64_t> ttfts;
  double wait_us = 0, ttft_us = 0;
  while (true) {
    if (absl::Status status = Fill(); !status.ok()) return status;
    if (queue_.empty()) break;
    Waiting next = std::move(queue_.front());
    queue_.pop_front();
    const uint64_t arrival = job_.backlog ? 0 : next.request.time_us;
    if (arrival > store_.now()) store_.RunUntil(arrival);
    const uint64_t begin = store_.now();
    if (job_.hints != HintMode::kOff) store_.Started(next.number, next.hints);
    const uint64_t stalled = store_.counts().stall_us;
    const auto compute = experts ? ServeLayers(next.request) : Serve(next.request);
    if (!compute.ok()) return compute.status();
    const uint64_t ttft = store_.counts().stall_us - stalled + *compute;
    ttfts.push_back(ttft);
    ttft_us += static_cast<double>(ttft);
    wait_us += static_cast<double>(begin - arrival);
    if (job_.progress && report.requests % 256 == 0) job_.progress(reader_.bytes_read());
    ++report.requests;
  }
  if (ttfts.empty()) return absl::OkStatus();
  const auto count = static_cast<double>(ttfts.size());
  report.ttft_us = ttft_us / count;
  report.ttft_with_wait_us = (ttft_us + wait_us) / count;
  const auto p99 = ttfts.begin() + static_cast<std::ptrdiff_t>(ttfts.size() * 99 / 100);
  std::nth_element(ttfts.begin(), p99, ttfts.end());
  report.ttft_p99_us = *p99;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TieredReport> ReplayTiers(const TieredJob& job) {
  const auto begin = std::chrono::steady_clock::now();
  TieredReport report;
  TieredStoreOptions options = job.store;
  if (job.hbm_share > 0 || job.host_share > 0) {
    const auto bytes = WorkingSet(job);
    if (!bytes.ok()) return bytes.status();
    report.working_set_bytes = *bytes;
    const auto share = [&](double of) {
      return static_cast<uint64_t>(of * static_cast<double>(*bytes));
    };
    if (job.hbm_share > 0) options.hbm_bytes = share(job.hbm_share);
    if (job.host_share > 0) options.host_bytes = share(job.host_share);
  }
  auto reader = OpenTrace(job.trace, job.trace_options);
  if (!reader.ok()) return reader.status();
  report.trace = (*reader)->info();
  options.layers = report.trace.layers;
  options.prefixes = report.trace.format == TraceFormat::kMooncake;
  auto store = TieredStore::Create(options);
  if (!store.ok()) return store.status();
  if (absl::Status status = Engine(job, **reader, **store).Run(report); !status.ok()) {
    return status;
  }
  if (absl::Status status = (*store)->CheckBytes(); !status.ok()) return status;
  report.hbm_bytes = options.hbm_bytes;
  report.host_bytes = options.host_bytes;
  report.counts = (*store)->counts();
  report.pcie = (*store)->pcie().counts();
  report.nvme = (*store)->nvme().counts();
  for (size_t i = 0; i < kHintSources; ++i) {
    report.to_hbm[i] = (*store)->to_hbm().counters(static_cast<HintSource>(i));
    report.to_host[i] = (*store)->to_host().counters(static_cast<HintSource>(i));
  }
  report.virtual_us = (*store)->now();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace terrace::replay
