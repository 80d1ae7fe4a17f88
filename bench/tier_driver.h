// An NvmeTier in this process, driven as fast as it goes: objects that differ in their key, with
// payloads in memory like the daemon's (shared, on huge pages where the kernel grants them). One
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/shared_memory.h"
#include "tests/support/test_loop.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace::bench {

struct StoredObject {
  RecordId record = kNoRecord;
  ObjectKey key;
};

class TierDriver {
 public:
  // Objects of `object_bytes` in parts of 64 KiB; at most `reads` reads at once.
  static absl::StatusOr<std::unique_ptr<TierDriver>> Open(NvmeOptions options,
                                                          uint64_t object_bytes, uint32_t reads);
  ~TierDriver();
  TierDriver(const TierDriver&) = delete;
  TierDriver& operator=(const TierDriver&) = delete;

  // Writes `count` objects, as many pending as the tier accepts, until all are durable.
  absl::Status Write(uint64_t count);
  // Reads them in this order, `in_flight` at once.
  absl::Status Read(absl::Span<const StoredObject> objects, uint32_t in_flight);
  // Reads random objects at demand priority, one at a time, while writes saturate, until there
  // were `count` reads and `seconds` have passed. Seconds each took.
  absl::StatusOr<std::vector<double>> ReadUnderWrites(uint64_t count, double seconds);

  // What can be read: in the order of writing, as long as nothing was reclaimed.
  const std::vector<StoredObject>& objects() const { return objects_; }
  NvmeStats Stats() const { return tier_->Stats(); }

 private:
  TierDriver() = default;
  absl::Status MakePayloads();
  void SubmitWrite();
  // As many writes as the tier accepts.
  void TopUp(uint64_t& left);
  void SubmitRead(const StoredObject& object, uint8_t* destination, std::function<void()> done);
  // Runs the loop until `done`, or until a read or a write failed: its status.
  absl::Status RunUntil(absl::FunctionRef<bool()> done);

  uint64_t object_bytes_ = 0, max_pending_bytes_ = 0, pending_bytes_ = 0, batch_ = 0;
  kernels::SharedMemory memory_;  // payloads to write, then a buffer for each read
  uint8_t* read_buffers_ = nullptr;
  std::vector<RecordMeta> payload_metas_;
  uint64_t next_payload_ = 0;
  std::mt19937_64 random_{20240607};
  absl::Status failure_;  // the first
  std::vector<StoredObject> objects_;
  absl::flat_hash_map<RecordId, size_t> index_of_;
  TestLoop loop_;  // outlives the tier, which posts to it until it ends
  std::unique_ptr<NvmeTier> tier_;
};

}  // namespace terrace::bench
