// A device of host memory behind a link of chosen speed: what tests and benches of an HBM tier run
// on where there is no GPU. The bytes are real and so is the time.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/device.h"

namespace terrace::kernels {

struct HostDeviceOptions {
  uint64_t capacity_bytes = 0;
  double bytes_per_s = 0;   // each way; 0: as fast as memory is
  uint64_t latency_us = 0;  // of each transfer
};

// Has one thread a direction. Destroying it waits for copies that were asked for.
std::unique_ptr<Device> NewHostDevice(const HostDeviceOptions& options);

}  // namespace terrace::kernels
