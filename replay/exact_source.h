// The whole future of a trace, for policies that are measured with it: exact next uses for MIN, and
// the single bits of succinct predictions (Antoniadis et al., "Paging with Succinct Predictions",
// ICML 2023). Reads the trace twice before it is served once more; in between a number an access
// lies in a temporary file. Memory grows with the number of distinct objects. One thread.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "replay/number_file.h"
#include "replay/request_source.h"
#include "replay/simulator.h"

namespace terrace::replay {

// Of every access of the trace, the next use of its object, or kNeverUsed. Reads to the end.
absl::StatusOr<NumberFile> ExactNextUses(TraceReader& reader);

// A bit an access: kNeverUsed for a page that is predicted to be of no use, kUnknownUse for any
// other. `flip` of them, chosen at random, say the opposite (0 .. 1).
struct Predictions {
  double flip = 0;
  uint64_t seed = 1;
};
// Discard bits: would MIN evict the object before it uses it again?
absl::StatusOr<NumberFile> DiscardBits(std::unique_ptr<RequestSource> exact,
                                       const SimulatorOptions& options, const Predictions& how);
// Phase bits: is the object not wanted in the phase after this one? A phase ends where one more
// distinct object would not fit the tier. Requires the next uses of the accesses that `reader`
// gives, and replaces them.
absl::Status PhaseBits(TraceReader& reader, const SimulatorOptions& options, const Predictions& how,
                       NumberFile& uses);

// The requests of `reader`, each access with its number of `uses`.
std::unique_ptr<RequestSource> NewExactSource(std::unique_ptr<TraceReader> reader, NumberFile uses);

}  // namespace terrace::replay
