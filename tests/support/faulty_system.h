// The operating system, and a disk, at their worst: a nvme::System in front of the real one that
// injects faults at rates set while it runs, loses power, and kills the process at labelled steps.
// Everything random follows from one seed, which tests print.
//
// Any thread. Outlives the tier.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "config/object_key.h"
#include "tests/support/disk_model.h"
#include "tiers/nvme/system.h"

namespace terrace {

enum class Fault : uint8_t {
  kReadError = 0,     // EIO
  kWriteError,        // EIO
  kSyncError,         // EIO
  kTransient,         // EINTR or EAGAIN, of anything that moves or allocates bytes
  kNoSpace,           // ENOSPC, of writes and allocations
  kShort,             // of reads and writes, to any number of bytes
  kDelay,             // some milliseconds
  kTornWrite,         // reported as done, as are the following
  kMisdirectedWrite,  // of engines only, as the one before
  kLostSync,
  kIndexError,
};
inline constexpr int kFaults = 11;
const char* FaultName(Fault fault);

class FaultySystem final : public nvme::System {
 public:
  explicit FaultySystem(uint64_t seed) : random_(seed) {}

  // The share of the calls it may hit that it hits.
  void SetRate(Fault fault, double rate);
  void ClearFaults();  // no storm either
  // While there is one, every read, write and sync fails with EIO.
  void SetStorm(bool on);
  uint64_t injected(Fault fault) const;
  // Whether what is stored of this object may have been destroyed by a fault, on its own account.
  bool IsDamaged(const ObjectKey& key) const;

  // From here on PowerCut() can tell what is not synced. Before anything is opened.
  void ModelDisk();
  // What was not synced may be lost or torn. The files must not be in use.
  void PowerCut();

  // The process is killed when `label` is reached for the n-th time from now, n >= 1, by SIGKILL;
  // after a PowerCut() with `power_cut`.
  void KillAt(const std::string& label, uint64_t n, bool power_cut);
  // Called at each step, before the process is killed there; must not call this object.
  void OnStep(std::function<void(const char* label)> listener);
  // How often each label was reached.
  std::map<std::string, uint64_t> Labels() const;
  // Runs `action` unless the process is being killed: then it never returns.
  void WhileAlive(absl::FunctionRef<void()> action);

  absl::StatusOr<std::unique_ptr<nvme::IoEngine>> MakeEngine(nvme::EngineChoice choice,
                                                             uint32_t depth) override;
  int Open(const std::string& path, int flags) override;
  int Allocate(int fd, uint64_t bytes) override;
  int Truncate(int fd, uint64_t bytes) override;
  int64_t Read(int fd, void* to, uint64_t bytes, uint64_t offset) override;
  int64_t Write(int fd, const void* from, uint64_t bytes, uint64_t offset) override;
  int Sync(int fd) override;
  int SyncDirectory(const std::string& path) override;
  int Rename(const std::string& from, const std::string& to) override;
  int Unlink(const std::string& path) override;
  absl::Status IndexFault() override;
  void Step(const char* label) override;

 private:
  friend class FaultyEngine;

  // What becomes of one operation of an engine.
  struct Plan {
    bool answered = false;  // by `result`: the engine does not see it
    int64_t result = 0;
    uint64_t limit = UINT64_MAX;  // of the bytes it moves, whole blocks
    uint64_t hidden = 0;          // of the bytes it moved, not reported
    uint64_t sync_begun = 0;
    std::chrono::milliseconds delay{0};
  };

  void Reach(const std::string& label);
  [[noreturn]] void Die();
  bool Hit(Fault fault);
  int64_t ErrorOf(nvme::IoOp::Kind kind);  // 0: none
  Plan PlanOp(const nvme::IoOp& op, uint64_t bytes);
  bool PlanDamage(const nvme::IoOp& op, uint64_t bytes);
  void OpEnded(const nvme::IoOp& op, const Plan& plan, int64_t result);
  const char* KindOf(const std::string& path) const;
  std::string LabelOf(int fd, const char* call) const;

  nvme::System& real_ = System::Real();
  mutable std::mutex mutex_;
  // Guarded by mutex_, all of them.
  std::mt19937_64 random_;
  std::array<double, kFaults> rates_{};
  std::array<uint64_t, kFaults> injected_{};
  bool storm_ = false;
  bool disk_modelled_ = false;
  DiskModel disk_;
  std::map<int, const char*> kinds_;  // of descriptors
  std::map<std::string, uint64_t> labels_;
  std::string kill_label_;
  uint64_t kill_after_ = 0;  // as many more times; 0: never
  bool kill_with_power_cut_ = false;
  std::function<void(const char*)> listener_;
};

}  // namespace terrace
