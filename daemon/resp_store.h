// Values of the RESP front-end as objects of a tenant: opaque objects under keys of their own, so
// that nothing that engines stored is ever taken for a value. Loop thread, but for Exists, Checksum
// and Check.
//
// A value is stored behind a header of 64 bytes with its length, in whole units of 64 bytes to 1
// MiB, at most 4,096 of them: four layouts hold values of any length, which comes back exactly.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "config/options.h"
#include "daemon/cache_service.h"
#include "daemon/value_index.h"
#include "transport/resp_service.h"

namespace terrace {

class RespStore final : public RespService {
 public:
  // `service` outlives the store. NotFound: the tenant.
  static absl::StatusOr<std::unique_ptr<RespStore>> Open(CacheService& service,
                                                         const RespSection& options);
  ~RespStore() override;  // gives back everything that is held

  // Ends what EXISTS held and nobody came for. Every few tens of milliseconds.
  void Tick() { EndHolds(MonotonicUs()); }

  RespRoom Reserve(uint64_t bytes) override;
  absl::Status Commit(uint64_t room, std::string_view name, uint32_t crc) override;
  void Abort(uint64_t room) override;
  void Acquire(std::string_view name, absl::AnyInvocable<void(RespValue)> done) override;
  void Release(uint64_t lease) override;
  void Hold(std::string_view name) override;
  bool Remove(std::string_view name) override;
  RespFacts Facts() override;
  int64_t Exists(std::string_view name) const override;
  uint32_t Checksum(const uint8_t* data, uint64_t bytes, uint32_t crc) const override;
  bool Check(const RespValue& value) const override;

 private:
  struct Unit {
    uint64_t bytes;
    Fingerprint fingerprint;
    uint32_t layout_id;
  };
  struct Room {
    uint8_t* payload;
    uint64_t value_bytes, payload_bytes;
  };
  struct Waiting {
    RespValue value;
    uint64_t payload_bytes;
    absl::AnyInvocable<void(RespValue)> done;
  };
  struct Held {
    uint64_t until_us, lease, bytes;
  };

  RespStore(CacheService& service, const RespSection& options)
      : service_(service), exists_lease_ms_(options.exists_lease_ms) {}
  absl::Status Start(const std::string& tenant);
  ObjectKey KeyOf(std::string_view name) const;
  // How the object is stored, or null when it is none of ours.
  const Unit* UnitOf(const ObjectInfo& object) const;
  void Ready(uint32_t slot, uint32_t word);
  void EndHolds(uint64_t now_us);

  CacheService& service_;
  const uint64_t exists_lease_ms_;
  SessionId session_ = 0;        // of values being read and written
  SessionId holds_session_ = 0;  // of what EXISTS found
  Salt salt_{};
  const MemoryTier* memory_ = nullptr;
  std::array<Unit, 4> units_{};
  ValueIndex index_;
  absl::flat_hash_map<uint64_t, Room> rooms_;
  absl::flat_hash_map<uint32_t, Waiting> waiting_;  // by board slot
  std::deque<Held> holds_;                          // oldest first
  uint64_t held_bytes_ = 0;
};

}  // namespace terrace
