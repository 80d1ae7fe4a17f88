#include "config/object_layout.h"

#include "absl/strings/str_cat.h"

namespace terrace {

absl::Status ObjectLayout::Validate() const {
  if (kind < ObjectKind::kKv || kind > ObjectKind::kOpaque) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.kind: ", static_cast<int>(kind), "; expected 1 (KV) .. 4 (opaque)"));
  }
  if (part_bytes_per_token.empty() || part_bytes_per_token.size() > kMaxParts - 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.part_bytes_per_token: ", part_bytes_per_token.size(),
                     " parts; expected 1 .. ", kMaxParts - 1));
  }
  for (size_t i = 0; i < part_bytes_per_token.size(); ++i) {
    if (part_bytes_per_token[i] == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout.part_bytes_per_token[", i, "]: 0; expected at least 1 byte"));
    }
  }
  return absl::OkStatus();
}

absl::Status ObjectLayout::CheckObject(uint32_t token_count, uint32_t grain_count) const {
  if (token_count == 0 || token_count > kMaxChunkTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_count: ", token_count, "; expected 1 .. ", kMaxChunkTokens));
  }
  // With a grain chain the key must cover every token, else two objects that differ in the
  // uncovered tail would share a key. 64-bit: grain_count comes from a client.
  if (grain_count != 0 && uint64_t{grain_count} * kGrainTokens != token_count) {
    return absl::InvalidArgumentError(
        absl::StrCat("grain_count: ", grain_count, " for ", token_count,
                     " tokens; expected 0, or token_count / ", kGrainTokens,
                     " with token_count a multiple of ", kGrainTokens));
  }
  // No sum below can wrap: each part is < 2^44 + 64 and the loop stops past 2^32.
  uint64_t end = IdentityBytes(grain_count);
  for (uint32_t per_token : part_bytes_per_token) {
    end = AlignUp(end, kPartAlignment) + uint64_t{per_token} * token_count;
    if (end > kMaxPayloadBytes) {
      return absl::InvalidArgumentError(absl::StrCat("payload of ", token_count,
                                                     " tokens: more than ", kMaxPayloadBytes,
                                                     " bytes, the largest object"));
    }
  }
  return absl::OkStatus();
}

std::vector<PartSpan> ObjectLayout::Parts(uint32_t token_count, uint32_t grain_count) const {
  std::vector<PartSpan> parts;
  parts.reserve(PartCount());
  parts.push_back({0, IdentityBytes(grain_count)});
  for (uint32_t per_token : part_bytes_per_token) {
    const uint64_t end = parts.back().offset + parts.back().bytes;
    parts.push_back({AlignUp(end, kPartAlignment), uint64_t{per_token} * token_count});
  }
  return parts;
}

uint64_t ObjectLayout::PayloadBytes(uint32_t token_count, uint32_t grain_count) const {
  uint64_t end = AlignUp(IdentityBytes(grain_count), kPartAlignment);
  for (uint32_t per_token : part_bytes_per_token) {
    end = AlignUp(end + uint64_t{per_token} * token_count, kPartAlignment);
  }
  return end;
}

}  // namespace terrace
