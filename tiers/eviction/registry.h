// The eviction policies by name.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tiers/eviction/policy.h"

namespace terrace {

struct PolicyEntry {
  std::string_view name;
  std::string_view what;  // one line, for --help
  bool needs_hints;       // is no better than chance, or than LRU, without Hint
};
absl::Span<const PolicyEntry> Policies();

// Wrapped to evict leaves first (leaf_first.h) where the context says that ids are extents of
// prefixes. InvalidArgument, with the accepted names, for an unknown one, and for a context of no
// capacity or no layers.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> NewPolicy(std::string_view name,
                                                          const PolicyContext& context);

}  // namespace terrace
