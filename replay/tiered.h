// A trace through HBM, host and NVMe (tiered_store.h) as one engine would serve it: requests in
// order, one at a time, each waiting for what it can reuse and then computing the rest. Engines'
// hints are taken from the requests to come, in part or wholly wrong if asked for. One thread; the
// same job gives the same result.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "replay/tiered_store.h"
#include "replay/trace.h"

namespace terrace::replay {

enum class HintMode : uint8_t {
  kOff,
  kQueue,   // what the next requests want
  kRandom,  // as many objects, any that the trace has had
};

struct TieredJob {
  std::string trace;
  TraceOptions trace_options;
  TieredStoreOptions store;  // prefixes and layers come from the trace
  // Instead of TieredStoreOptions::hbm_bytes and host_bytes, where above 0: of the bytes of all
  // distinct objects of the trace, which takes another pass.
  double hbm_share = 0, host_share = 0;

  HintMode hints = HintMode::kOff;
  uint32_t window = 64;       // requests known ahead
  double wrong = 0;           // share of the objects of hints that are any others instead
  float confidence = 1;       // as the engine states it
  bool backlog = false;       // all requests wait from the start, whatever their times
  double token_us = 20;       // to compute what is not reused
  double layer_us = 50;       // of a routing trace, to compute a layer
  uint64_t max_requests = 0;  // 0: all
  std::function<void(uint64_t bytes)> progress;  // of the last pass, if set
};

struct TieredReport {
  TraceInfo trace;
  uint64_t requests = 0;
  uint64_t working_set_bytes = 0;  // 0: not asked for
  uint64_t hbm_bytes = 0, host_bytes = 0;
  TieredCounts counts;
  LinkCounts pcie, nvme;
  std::array<PrefetchCounters, kHintSources> to_hbm, to_host;
  uint64_t virtual_us = 0;
  // From the moment an engine is free for a request: stall and computing. And with the wait.
  double ttft_us = 0, ttft_with_wait_us = 0;  // means
  uint64_t ttft_p99_us = 0;
  double seconds = 0;  // of real time
};

// Fails as OpenTrace, TraceReader, TieredStore and Lookahead do.
absl::StatusOr<TieredReport> ReplayTiers(const TieredJob& job);

}  // namespace terrace::replay
