// A trace through one policy: what `terrace replay` does for each cell of its table. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "replay/exact_source.h"
#include "replay/simulator.h"
#include "replay/trace.h"

namespace terrace::replay {

struct ReplayJob {
  std::string trace;  // a path; a policy that knows the future needs one that can be read again
  TraceOptions trace_options;
  std::string policy;          // of tiers/eviction/registry.h
  SimulatorOptions simulator;  // layers come from the trace
  // Requests known ahead. A policy that takes no hints of its own is put behind
  // tiers/eviction/window.h then.
  uint32_t window = 0;
  Predictions predictions;  // for policies that take bits
  // Called now and then with the bytes read so far by the pass named, if set.
  std::function<void(std::string_view pass, uint64_t bytes)> progress;
};

struct ReplayReport {
  TraceInfo trace;
  Counts counts;
  double seconds = 0;  // of the last pass: reading, parsing and simulating
};

// What a policy is told of the future, besides the window.
enum class Foresight : uint8_t { kNone, kExactUses, kDiscardBits, kPhaseBits };
Foresight ForesightOf(std::string_view policy);

// Fails as OpenTrace, TraceReader, NumberFile and NewPolicy do.
absl::StatusOr<ReplayReport> Replay(const ReplayJob& job);

}  // namespace terrace::replay
