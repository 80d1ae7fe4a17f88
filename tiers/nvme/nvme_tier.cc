#include "tiers/nvme/nvme_tier.h"

#include <utility>

#include "tiers/nvme/tier_impl.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<NvmeTier>> NvmeTier::Open(NvmeOptions options, PostFn post) {
  auto impl = std::make_shared<Impl>(std::move(options), std::move(post));
  absl::Status status = impl->Open();
  if (!status.ok()) {
    impl->Stop();
    return status;
  }
  return std::unique_ptr<NvmeTier>(new NvmeTier(std::move(impl)));
}

NvmeTier::NvmeTier(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
NvmeTier::~NvmeTier() { impl_->Stop(); }

absl::Status NvmeTier::Recover(CountVisitor expect, RecordVisitor visit) {
  return impl_->Recover(expect, visit);
}
const std::vector<ObjectKey>& NvmeTier::lost() const { return impl_->lost(); }
void NvmeTier::Write(WriteRequest request) { impl_->Write(std::move(request)); }
ReadTicket NvmeTier::Read(ReadRequest request) { return impl_->Read(std::move(request)); }
void NvmeTier::Reprioritize(ReadTicket ticket, IoPriority priority, uint64_t batch) {
  impl_->Reprioritize(ticket, priority, batch);
}
void NvmeTier::Cancel(ReadTicket ticket) { impl_->Cancel(ticket); }
uint64_t NvmeTier::PayloadBytes(RecordId record) const { return impl_->PayloadBytes(record); }
uint64_t NvmeTier::StoredBytes(RecordId record) const { return impl_->StoredBytes(record); }
void NvmeTier::Erase(RecordId record) { impl_->Erase(record); }
void NvmeTier::OnDropped(std::function<void(RecordId, const ObjectKey&)> callback) {
  impl_->on_dropped = std::move(callback);
}
void NvmeTier::Touch(RecordId record) { impl_->Touch(record); }
void NvmeTier::SetPinned(RecordId record, bool pinned) { impl_->SetPinned(record, pinned); }
uint64_t NvmeTier::pending_pins() const { return impl_->pending_pins(); }
bool NvmeTier::in_service() const { return impl_->in_service(); }
absl::Status NvmeTier::SetCapacity(uint64_t bytes) { return impl_->SetCapacity(bytes); }
void NvmeTier::KeepApart(std::set<uint32_t> tenant_ids) { impl_->KeepApart(std::move(tenant_ids)); }
void NvmeTier::Tick() { impl_->Tick(); }
NvmeStats NvmeTier::Stats() const { return impl_->Stats(); }

}  // namespace terrace
