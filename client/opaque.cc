// Opaque objects: one run of bytes under a key. A layout is registered for each size, so that what
// comes back has exactly the length that was put.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/core.h"
#include "kernels/checksum.h"

namespace terrace {
namespace {

constexpr uint32_t kBytesPart = 1;

Fingerprint OpaqueFingerprint(std::string_view what) {
  return OpaqueKey(Salt{}, Fingerprint{}, what).bytes;
}

ObjectLayout OpaqueLayout(uint64_t bytes) {
  ObjectLayout layout;
  layout.fingerprint = OpaqueFingerprint(absl::StrCat("terrace opaque object of ", bytes));
  layout.kind = ObjectKind::kOpaque;
  layout.part_bytes_per_token = {static_cast<uint32_t>(bytes)};
  return layout;
}

}  // namespace

ObjectKey Client::KeyFor(std::string_view name) const {
  return OpaqueKey(core_->welcome().salt, OpaqueFingerprint("terrace opaque keys"), name);
}

absl::StatusOr<Model> Client::OpaqueModel(uint64_t bytes) {
  if (bytes == 0 || bytes > kMaxPayloadBytes - kExtentAlignment) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes: ", bytes, "; expected 1 .. ", kMaxPayloadBytes - kExtentAlignment));
  }
  Model model;
  model.layout = OpaqueLayout(bytes);
  const auto layout_id = core_->connection().RegisterLayout(model.layout);
  if (!layout_id.ok()) return layout_id.status();
  model.layout_id = *layout_id;
  return model;
}

absl::Status Client::Put(const ObjectKey& key, absl::Span<const uint8_t> bytes) {
  const auto model = OpaqueModel(bytes.size());
  if (!model.ok()) return model.status();
  const ReserveItem item{key, {}, 1, 0, 0};
  const RoomWait wait(core_->options());
  ReserveResult reservation;
  do {
    const auto reserved = core_->connection().Reserve(model->layout_id, {&item, 1});
    if (!reserved.ok()) return reserved.status();
    reservation = reserved->front();
  } while (!reservation.status.ok() && reservation.retry_after_ms > 0 &&
           wait.Sleep(reservation.retry_after_ms));
  if (!reservation.status.ok()) return reservation.status;

  const auto payload = core_->WritableAt(reservation.offset, model->layout.PayloadBytes(1, 0));
  if (!payload.ok()) {
    core_->connection().Abort({&reservation.reservation_id, 1}).IgnoreError();
    return payload.status();
  }
  CommitItem commit;
  commit.reservation_id = reservation.reservation_id;
  const PartSpan part = model->layout.Parts(1, 0)[kBytesPart];
  commit.part_crcs = {0, kernels::CopyCrc32c(*payload + part.offset, bytes.data(), bytes.size())};
  const auto committed = core_->connection().Commit({&commit, 1});
  return committed.ok() ? committed->front() : committed.status();
}

absl::StatusOr<Lease> Client::Get(const ObjectKey& key, const AcquireOptions& options) {
  const auto object = core_->connection().Show(key);
  if (!object.ok()) return object.status();
  // Payloads are padded to 64 bytes; the fingerprint tells which of the possible sizes it was.
  uint64_t bytes = object->payload_bytes;
  while (OpaqueLayout(bytes).fingerprint != object->fingerprint) {
    if (bytes == 0 || bytes + kPartAlignment <= object->payload_bytes + 1) {
      return absl::FailedPreconditionError(absl::StrCat(key.ToHex(), " is not an opaque object"));
    }
    --bytes;
  }
  const auto model = OpaqueModel(bytes);
  if (!model.ok()) return model.status();
  PrefixMatch match;
  match.matched_tokens = 1;
  match.chunks.push_back({key, 0, 1, 1, 0, {}, key});
  return Acquire(*model, match, options);
}

}  // namespace terrace
