// The readers of replay/trace.h, one a format.
#pragma once

#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "replay/line_reader.h"
#include "replay/trace.h"

namespace terrace::replay {

std::unique_ptr<TraceReader> NewMooncakeReader(std::unique_ptr<LineReader> lines);

absl::StatusOr<std::unique_ptr<TraceReader>> NewRagPulseReader(std::unique_ptr<LineReader> lines,
                                                               const TraceOptions& options,
                                                               const std::string& directory);
// Adds the lengths of one of RAGPulse's tables, by id. InvalidArgument as of TraceReader::Next.
using TokenLengths = absl::flat_hash_map<uint64_t, uint32_t>;
absl::Status ReadTokenLengths(LineReader& lines, std::string_view id_field, TokenLengths& lengths);

// Reads the first line for the number of layers.
absl::StatusOr<std::unique_ptr<TraceReader>> NewRoutingReader(std::unique_ptr<LineReader> lines);

}  // namespace terrace::replay
