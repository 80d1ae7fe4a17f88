// What host memory holds and the future wants on the device: what the device evicted (LSM-GNN's
// victim buffer), and what was announced meanwhile. In buckets by predicted time of use
// (tiers/victim_buffer.h), each moved up in one go before its time. What finds no room there, or is
// wanted by nobody any more, stays in host memory as any other object. Loop thread.
#pragma once

#include <vector>

#include "config/options.h"
#include "daemon/catalog.h"
#include "daemon/mover.h"
#include "daemon/prefetch/lookahead.h"
#include "daemon/tenant.h"
#include "tiers/victim_buffer.h"

namespace terrace {

class DeviceReturns {
 public:
  // All references outlive it.
  DeviceReturns(const Options& options, Catalog& catalog, const std::vector<Tenant>& tenants,
                Mover& mover, const Lookahead& lookahead);

  // The object, which is in memory, is next wanted then; kUnknownUse or kNeverUsed: no longer.
  void Expect(ObjectId id, uint64_t due);
  // It left memory.
  void Left(ObjectId id);
  // Moves up what is due before the next call: some times a second.
  void MoveUp();

 private:
  bool MayLeave(ObjectId id, uint64_t due) const;
  void MoveUp(const VictimBuffer::Bucket& bucket);

  Catalog& catalog_;
  Mover& mover_;
  const Lookahead& lookahead_;
  std::vector<VictimBuffer> buffers_;  // by tenant; none without a device
  uint64_t last_batch_ = 0;
};

}  // namespace terrace
