// What a RESP server serves: named values, whose bytes lie in memory that the server fills and
// sends from. Implemented by the daemon. Loop thread, but for what is said to be of any.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

namespace terrace {

// Room for a value that is being received. It has a name, and is seen, from Commit on.
struct RespRoom {
  // ResourceExhausted: no room now, ask again in retry_after_ms. InvalidArgument: too large, ever.
  absl::Status status;
  uint32_t retry_after_ms = 0;
  uint64_t id = 0;
  uint8_t* data = nullptr;
};

// A value that stays where it is until Release(lease).
struct RespValue {
  // NotFound: also when it could not be brought up. ResourceExhausted: no room to bring it up now,
  // ask again in retry_after_ms.
  absl::Status status;
  uint32_t retry_after_ms = 0;
  uint64_t lease = 0;  // 0: none; else to be released, whatever the status
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
  bool check = false;  // Check() is wanted before it is sent
  uint32_t crc = 0;    // that Check() compares with
};

struct RespFacts {
  uint64_t objects = 0;  // of all kinds and tenants
  uint64_t used_bytes = 0, capacity_bytes = 0;
};

class RespService {
 public:
  virtual ~RespService() = default;

  virtual RespRoom Reserve(uint64_t bytes) = 0;
  // The value is complete: from now on the name means it, and no longer what it meant before. The
  // room is the caller's no more, whatever the status.
  virtual absl::Status Commit(uint64_t room, std::string_view name, uint32_t crc) = 0;
  virtual void Abort(uint64_t room) = 0;
  // `done` runs at once, or when the value has come up from a lower tier. On the loop thread.
  virtual void Acquire(std::string_view name, absl::AnyInvocable<void(RespValue)> done) = 0;
  virtual void Release(uint64_t lease) = 0;
  // A value that Exists found stays in memory for a while, as its GET is usually next.
  virtual void Hold(std::string_view name) = 0;
  virtual bool Remove(std::string_view name) = 0;
  virtual RespFacts Facts() = 0;

  // Any thread. Of a value that is there: its length, about; else -1.
  virtual int64_t Exists(std::string_view name) const = 0;
  // Any thread. The checksum that Commit wants is of the value's bytes, continued from `crc`.
  virtual uint32_t Checksum(const uint8_t* data, uint64_t bytes, uint32_t crc) const = 0;
  virtual bool Check(const RespValue& value) const = 0;
};

}  // namespace terrace
