// Blocks: objects under an engine's own keys, in batches.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/core.h"

namespace terrace {
namespace {

constexpr uint64_t kLongestPart = 0xffffffffu;

Fingerprint BlockFingerprint(const BlockLayout& layout) {
  std::string what = absl::StrCat("terrace blocks of ", layout.part_bytes.size(), " parts:");
  for (const uint64_t bytes : layout.part_bytes) absl::StrAppend(&what, " ", bytes);
  absl::StrAppend(&what, "; ", layout.space);
  return OpaqueKey(Salt{}, Fingerprint{}, what).bytes;
}

}  // namespace

absl::StatusOr<Model> Client::RegisterBlocks(const BlockLayout& layout) {
  Model model;
  model.layout.fingerprint = BlockFingerprint(layout);
  for (size_t i = 0; i < layout.part_bytes.size(); ++i) {
    const uint64_t bytes = layout.part_bytes[i];
    if (bytes == 0 || bytes > kLongestPart) {
      return absl::InvalidArgumentError(
          absl::StrCat("part_bytes[", i, "]: ", bytes, "; expected 1 .. ", kLongestPart));
    }
    model.layout.part_bytes_per_token.push_back(static_cast<uint32_t>(bytes));
  }
  if (layout.part_bytes.empty() || layout.part_bytes.size() >= kMaxParts) {
    return absl::InvalidArgumentError(absl::StrCat("part_bytes: ", layout.part_bytes.size(),
                                                   " parts; expected 1 .. ", kMaxParts - 1));
  }
  if (absl::Status valid = model.layout.CheckObject(1, 0); !valid.ok()) return valid;
  const auto layout_id = core_->connection().RegisterLayout(model.layout);
  if (!layout_id.ok()) return layout_id.status();
  model.layout_id = *layout_id;
  return model;
}

ObjectKey Client::BlockKey(const Model& model, std::string_view salt, std::string_view name) const {
  const Salt& tenant = core_->welcome().salt;
  return OpaqueKey(salt.empty() ? tenant : DeriveSalt(tenant, salt), model.layout.fingerprint,
                   name);
}

absl::StatusOr<std::vector<ExtentInfo>> Client::FindBlocks(const Model& model,
                                                           absl::Span<const ObjectKey> keys) {
  std::vector<ExtentInfo> found;
  found.reserve(keys.size());
  const size_t batch = core_->welcome().max_keys_per_call;
  for (size_t begin = 0; begin < keys.size(); begin += batch) {
    absl::Status status =
        core_->connection().Find(model.layout_id, keys.subspan(begin, batch), found);
    if (!status.ok()) return status;
  }
  return found;
}

absl::StatusOr<Lease> Client::AcquireBlocks(const Model& model, absl::Span<const ObjectKey> keys,
                                            const AcquireOptions& options) {
  PrefixMatch match;
  match.chunks.reserve(keys.size());
  for (const ObjectKey& key : keys) {
    match.chunks.push_back({key, match.matched_tokens++, 1, 1, 0, {}, key});
  }
  return Acquire(model, match, options);
}

}  // namespace terrace
