// How many bytes may still be written to the device: a token bucket that holds a quarter of the
// day's budget and refills at three quarters of it a day, so that no 24 hours see more than the
// budget. Survives restarts: what is not yet spent is recorded ahead of being spent, so a crash can
// only lose allowance, never grant it twice.
//
// Pure, with the time passed in; loop thread.
#pragma once

#include <cstdint>

namespace terrace::nvme {

class WriteBudget {
 public:
  // What a superblock says of it.
  struct Saved {
    uint64_t bytes = 0;
    uint64_t time_us = 0;  // of the wall clock; 0: never saved, begin with a full bucket
  };

  // `bytes_per_day` 0: no limit.
  WriteBudget(uint64_t bytes_per_day, const Saved& saved, uint64_t now_us);

  // Takes `bytes` if there are as many, or if the bucket is full and holds fewer than one request.
  bool Take(uint64_t bytes, uint64_t now_us);
  // Takes what has to be written whatever there is.
  void Spend(uint64_t bytes) { level_ -= static_cast<double>(bytes); }

  bool limited() const { return bytes_per_day_ > 0; }
  // May be taken now; without a limit, all there is.
  uint64_t available_bytes(uint64_t now_us);
  // Whether to save again, before what was saved is spent.
  bool should_save() const;
  // What to save: less than there is, so that it need not be saved again soon.
  Saved Save(uint64_t now_us);
  // What to save at a clean stop: all there is.
  Saved SaveAll(uint64_t now_us);

 private:
  void Refill(uint64_t now_us);
  double depth() const { return static_cast<double>(bytes_per_day_) / 4; }

  const uint64_t bytes_per_day_;
  double level_ = 0;        // may be taken
  double saved_floor_ = 0;  // the level that was saved last; below it a crash would grant twice
  uint64_t refilled_us_ = 0;
};

}  // namespace terrace::nvme
