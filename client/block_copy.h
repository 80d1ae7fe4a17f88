// Copies between parts of blocks and the pieces of an engine's memory, on one thread or several.
// Private to client/. Any thread.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/terrace.h"

namespace terrace {

// Calls `copy` once for every run of pieces of the same part, on up to `threads` threads (0: as
// many as pay). The first failure ends the rest soon and is the answer.
absl::Status CopyParts(absl::Span<const BlockPiece> pieces, uint32_t threads,
                       absl::FunctionRef<absl::Status(absl::Span<const BlockPiece>)> copy);

// InvalidArgument unless the pieces have together `part_bytes`, or less where `or_less`.
absl::Status CheckLength(absl::Span<const BlockPiece> of_part, uint64_t part_bytes, bool or_less);

}  // namespace terrace
