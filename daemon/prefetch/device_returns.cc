#include "daemon/prefetch/device_returns.h"

#include <optional>

#include "daemon/session.h"

namespace terrace {

namespace {

// Of the host tier: an index of more than comes up soon is of no use.
constexpr uint64_t kHostShare = 2;
constexpr uint64_t kBucketUs = 20'000;
// Until the next call, and some more.
constexpr uint64_t kAheadUs = 40'000;
constexpr uint64_t kLatencyUs = 20;

}  // namespace

DeviceReturns::DeviceReturns(const Options& options, Catalog& catalog,
                             const std::vector<Tenant>& tenants, Mover& mover,
                             const Lookahead& lookahead)
    : catalog_(catalog), mover_(mover), lookahead_(lookahead) {
  if (!options.hbm.enabled() || !options.prefetch.enabled) return;
  for (const Tenant& tenant : tenants) {
    buffers_.emplace_back(
        VictimBufferOptions{tenant.host->capacity_bytes() / kHostShare, kBucketUs});
  }
}

void DeviceReturns::Expect(ObjectId id, uint64_t due) {
  if (buffers_.empty()) return;
  const Entry& entry = catalog_.at(id);
  VictimBuffer& buffer = buffers_[entry.tenant];
  const uint64_t key_head = entry.key.Head64();
  const bool below = entry.host != nullptr && entry.host->ready && !entry.in_device;
  if (!below || due == kUnknownUse || due == kNeverUsed) {
    buffer.Take(key_head);
  } else if (buffer.Holds(key_head)) {
    buffer.Reschedule(key_head, due);
  } else {
    std::vector<VictimBuffer::Entry> dropped;  // they stay where they are
    buffer.Put({key_head, entry.payload_bytes(), due}, &dropped);
  }
}

void DeviceReturns::Left(ObjectId id) {
  if (buffers_.empty()) return;
  buffers_[catalog_.at(id).tenant].Take(catalog_.at(id).key.Head64());
}

void DeviceReturns::MoveUp() {
  if (buffers_.empty()) return;
  const double per_byte = 1e6 / mover_.DeviceBytesPerS();
  for (VictimBuffer& buffer : buffers_) {
    while (const auto bucket = buffer.TakeDue(MonotonicUs() + kAheadUs, per_byte, kLatencyUs)) {
      MoveUp(*bucket);
    }
  }
}

bool DeviceReturns::MayLeave(ObjectId id, uint64_t due) const {
  const auto next = lookahead_.NextUse(catalog_.at(id).key.Head64());
  return !next || next->due > due;
}

void DeviceReturns::MoveUp(const VictimBuffer::Bucket& bucket) {
  const uint64_t batch = ++last_batch_;
  for (const VictimBuffer::Entry& victim : bucket.entries) {
    const ObjectId id = catalog_.FindByHead(victim.key_head);
    if (id == kNoObject || !catalog_.at(id).visible()) continue;
    const Entry& entry = catalog_.at(id);
    if (entry.host == nullptr || !entry.host->ready || entry.in_device) continue;
    if (lookahead_.StandingOf(victim.key_head) != Lookahead::Standing::kAnnounced) continue;
    uint32_t retry_after_ms = 0;
    // Without room it stays where it is: then it is the demand's to move.
    mover_
        .PromoteToDevice(id, entry.host->layout, IoPriority::kQueued, batch, retry_after_ms,
                         [&](ObjectId other) { return MayLeave(other, victim.due); })
        .IgnoreError();
  }
}

}  // namespace terrace
