// Any thread.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "codec/profile.h"

namespace terrace::codec {

// The inverse of a section's transform, [block][channel][coefficient]; empty for
// Transform::kChannel. What an encoder needs and a decoder does not. Computed from the profile in
// double, the same on every machine. FailedPrecondition when it is singular.
absl::StatusOr<std::vector<float>> InverseTransform(const SectionProfile& section);

}  // namespace terrace::codec
