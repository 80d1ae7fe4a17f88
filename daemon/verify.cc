// Mover: reads back what is stored and compares it with its checksums.
#include <memory>
#include <utility>

#include "daemon/mover.h"
#include "kernels/buffer.h"
#include "kernels/checksum.h"

namespace terrace {

bool Mover::HostCopyChecks(const Entry& entry) const {
  const MemoryCopy& host = *entry.host;
  const uint8_t* payload = tenants_[entry.tenant].host->At(host.extent);
  const auto parts = layouts_[host.layout].Parts(entry.token_count, entry.grain_count);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (kernels::Crc32c(payload + parts[i].offset, parts[i].bytes) != host.part_crcs()[i]) {
      return false;
    }
  }
  return true;
}

void Mover::Verify(ObjectId id, absl::AnyInvocable<void(VerifyOutcome)> done) {
  Entry& entry = catalog_.at(id);
  VerifyOutcome outcome;
  if (entry.host != nullptr && entry.host->ready) {
    outcome.bytes += entry.payload_bytes();
    if (!HostCopyChecks(entry)) {
      // What is in the tenant's memory is not what was committed, and the record may have been
      // written from it: neither is trusted.
      outcome.corrupt = true;
      ++metrics_.corrupt_objects;
      Remove(id);
    }
  }
  const DeviceCopy* above = OnDevice(id);
  if (!outcome.corrupt && entry.host == nullptr && above != nullptr && above->ready()) {
    VerifyOnDevice(id, std::move(done));
    return;
  }
  if (outcome.corrupt || entry.record == kNoRecord) {
    done(outcome);
    return;
  }
  VerifyRecord(id, outcome, std::move(done));
}

// Reads the device copy back, then the record.
void Mover::VerifyOnDevice(ObjectId id, absl::AnyInvocable<void(VerifyOutcome)> done) {
  const Entry& entry = catalog_.at(id);
  const MemoryCopy& above = *OnDevice(id)->memory;
  auto scratch = std::make_shared<kernels::AlignedBuffer>(entry.payload_bytes());
  DeviceMove move;
  move.direction = kernels::CopyDirection::kFromDevice;
  move.host = scratch->data();
  move.device = tenants_[entry.tenant].device->At(above.extent);
  move.parts = layouts_[above.layout].Parts(entry.token_count, entry.grain_count);
  move.part_crcs.assign(above.part_crcs().begin(), above.part_crcs().end());
  move.demand = false;
  move.done = [this, id, key = entry.key, scratch, bytes = entry.payload_bytes(),
               done = std::move(done)](const absl::Status& status) mutable {
    VerifyOutcome outcome;
    outcome.bytes = bytes;
    const bool there = catalog_.Find(key) == id;  // it may have gone meanwhile
    if (absl::IsDataLoss(status)) {
      outcome.corrupt = true;
      ++metrics_.corrupt_objects;
      if (there) Remove(id);
    } else if (there && catalog_.at(id).record != kNoRecord) {
      VerifyRecord(id, outcome, std::move(done));
      return;
    }
    done(outcome);
  };
  device_link_->Start(std::move(move));
}

void Mover::VerifyRecord(ObjectId id, VerifyOutcome outcome,
                         absl::AnyInvocable<void(VerifyOutcome)> done) {
  const Entry& entry = catalog_.at(id);
  // The record is read into scratch memory, so that verification evicts nothing.
  const uint64_t stored_bytes = StoredBytes(entry);
  auto scratch = std::make_shared<kernels::AlignedBuffer>(AlignUp(stored_bytes, kExtentAlignment));
  ReadRequest request;
  request.record = entry.record;
  request.key = entry.key;
  request.fingerprint = catalog_.fingerprint(entry.fingerprint);
  request.destination = scratch->data();
  request.priority = IoPriority::kBackground;
  request.done = [this, key = entry.key, outcome, scratch, bytes = stored_bytes,
                  done = std::move(done)](absl::StatusOr<RecordMeta> meta) mutable {
    outcome.bytes += bytes;
    if (absl::IsDataLoss(meta.status())) {
      outcome.corrupt = true;
      ++metrics_.corrupt_objects;
      RecordLost(key);
    }
    done(outcome);
  };
  nvme_->Read(std::move(request));
}

void Mover::RecordLost(const ObjectKey& key) {
  const ObjectId id = catalog_.Find(key);
  if (id == kNoObject) return;
  Entry& entry = catalog_.at(id);
  LoseRecord(id);
  if (entry.host != nullptr && entry.host->ready && !entry.queued) {
    Reprice(id);
    Enqueue(id);  // the host copy is good: write it again
    FeedWrites();
    return;
  }
  ReleaseIfGone(id);
}

}  // namespace terrace
