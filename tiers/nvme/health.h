// Whether the device is fit for use: serving; read-only while it is full; out of service after a
// storm of errors, until a probe succeeds. Pure, with the time passed in; loop thread.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"

namespace terrace::nvme {

class Health {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // A read or write ended: ok, ResourceExhausted (no space) or Unavailable (an I/O error). Other
  // statuses say nothing about the device.
  void Note(const absl::Status& status, Time now);

  bool in_service() const { return !out_of_service_; }
  bool may_write(Time now) const { return in_service() && now >= read_only_until_; }
  // Out of service, and time to find out whether it still must be: at most one probe at a time.
  bool probe_due(Time now) const { return out_of_service_ && now >= next_probe_; }
  void ProbeBegun(Time now);
  void ProbeEnded(const absl::Status& status, Time now);

  // "ok", "read-only: ...", "out of service: ...".
  std::string Describe(Time now) const;

 private:
  bool out_of_service_ = false;
  Time next_probe_;
  Time read_only_until_;
  Time window_begin_;
  int errors_ = 0, successes_ = 0;  // of this window
  std::string reason_;
};

}  // namespace terrace::nvme
