// Memory of a device that a link joins to the host: what a tier in HBM needs of a GPU, and no more.
// HostDevice (kernels/host_device.h) is one of real memory behind a real throttle; the mover of
// such a tier takes the same path on both.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace::kernels {

// An address in the device's memory, for arithmetic and for the device's own calls: the host must
// not follow it.
using DeviceAddress = uint64_t;

enum class CopyDirection { kToDevice, kFromDevice };

struct DeviceCopy {
  uint8_t* host = nullptr;  // read or written, by direction; stays valid until the copy is done
  DeviceAddress device = 0;
  uint64_t bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;
  virtual uint64_t capacity_bytes() const = 0;

  // Memory that is aligned to 4096, of undefined content. ResourceExhausted when it is not there,
  // InvalidArgument for 0 bytes. Any thread; a GPU may block here, so tiers take one piece and
  // divide it themselves.
  virtual absl::StatusOr<DeviceAddress> Allocate(uint64_t bytes) = 0;
  // What Allocate returned. No copy may be on its way from or to it.
  virtual void Free(DeviceAddress address) = 0;
  // A descriptor through which other processes can read what Allocate returned at this address:
  // of a GPU what cuMemExportToShareableHandle gives. Borrowed until Free; -1 for an address that
  // was not allocated. Any thread.
  virtual int ShareableFd(DeviceAddress address) = 0;

  // Copies in one direction run in the order of the calls, the two directions beside each other;
  // those of one call are one transfer on the link: latency is paid once. `done` is called once, on
  // the device's thread: it must not block. OK, or InvalidArgument when a copy touches memory that
  // was not allocated: then nothing of the call was copied. Any thread; does not block.
  virtual void Copy(CopyDirection direction, absl::Span<const DeviceCopy> copies,
                    absl::AnyInvocable<void(absl::Status)> done) = 0;
  // Blocks until every copy that was asked for before is done.
  virtual void Synchronize() = 0;
};

}  // namespace terrace::kernels
