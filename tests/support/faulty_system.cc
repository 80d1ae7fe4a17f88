#include "tests/support/faulty_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include "tests/support/faulty_engine.h"
#include "tiers/nvme/block.h"

namespace terrace {

namespace {

using nvme::IoOp;

constexpr uint64_t kBlock = nvme::kBlockBytes;
constexpr uint64_t kMaxDelayMs = 20;

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

}  // namespace

const char* FaultName(Fault fault) {
  constexpr const char* kNames[kFaults] = {
      "read error", "write error", "sync error",        "EINTR/EAGAIN", "no space",   "short",
      "delay",      "torn write",  "misdirected write", "lost sync",    "index error"};
  return kNames[static_cast<int>(fault)];
}

void FaultySystem::SetRate(Fault fault, double rate) {
  std::lock_guard<std::mutex> lock(mutex_);
  rates_[static_cast<int>(fault)] = rate;
}

void FaultySystem::ClearFaults() {
  std::lock_guard<std::mutex> lock(mutex_);
  rates_.fill(0);
  storm_ = false;
}

void FaultySystem::SetStorm(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  storm_ = on;
}

uint64_t FaultySystem::injected(Fault fault) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return injected_[static_cast<int>(fault)];
}

bool FaultySystem::IsDamaged(const ObjectKey& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return disk_.IsDamaged(key);
}

void FaultySystem::ModelDisk() {
  std::lock_guard<std::mutex> lock(mutex_);
  disk_modelled_ = true;
}

void FaultySystem::PowerCut() {
  std::lock_guard<std::mutex> lock(mutex_);
  disk_.PowerCut(random_);
}

void FaultySystem::KillAt(const std::string& label, uint64_t n, bool power_cut) {
  std::lock_guard<std::mutex> lock(mutex_);
  kill_label_ = label;
  kill_after_ = n;
  kill_with_power_cut_ = power_cut;
}

void FaultySystem::OnStep(std::function<void(const char*)> listener) {
  std::lock_guard<std::mutex> lock(mutex_);
  listener_ = std::move(listener);
}

std::map<std::string, uint64_t> FaultySystem::Labels() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return labels_;
}

// Requires mutex_, which it keeps: nothing else happens until the process is gone.
void FaultySystem::Die() {
  if (kill_with_power_cut_) disk_.PowerCut(random_);
  kill(getpid(), SIGKILL);
  while (true) pause();
}

void FaultySystem::WhileAlive(absl::FunctionRef<void()> action) {
  std::lock_guard<std::mutex> lock(mutex_);
  action();
}

void FaultySystem::Reach(const std::string& label) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++labels_[label];
  if (listener_) listener_(label.c_str());
  if (kill_after_ > 0 && label == kill_label_ && --kill_after_ == 0) Die();
}

void FaultySystem::Step(const char* label) { Reach(label); }

bool FaultySystem::Hit(Fault fault) {
  const double rate = rates_[static_cast<int>(fault)];
  if (rate == 0 || static_cast<double>(random_() >> 11) * 0x1p-53 >= rate) return false;
  ++injected_[static_cast<int>(fault)];
  return true;
}

int64_t FaultySystem::ErrorOf(IoOp::Kind kind) {
  if (storm_) return -EIO;
  if (Hit(Fault::kTransient)) return random_() % 2 == 0 ? -EINTR : -EAGAIN;
  if (kind == IoOp::Kind::kWrite && Hit(Fault::kNoSpace)) return -ENOSPC;
  const Fault error = kind == IoOp::Kind::kRead    ? Fault::kReadError
                      : kind == IoOp::Kind::kWrite ? Fault::kWriteError
                                                   : Fault::kSyncError;
  return Hit(error) ? -EIO : 0;
}

FaultySystem::Plan FaultySystem::PlanOp(const IoOp& op, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Plan plan;
  plan.result = ErrorOf(op.kind);
  plan.answered = plan.result < 0;
  if (plan.answered) return plan;
  if (op.kind == IoOp::Kind::kSync) {
    plan.answered = Hit(Fault::kLostSync);
    if (disk_modelled_ && !plan.answered) plan.sync_begun = disk_.SyncBegun(op.fd);
    return plan;
  }
  if (op.kind == IoOp::Kind::kWrite && PlanDamage(op, bytes)) {
    plan.answered = true;
    plan.result = static_cast<int64_t>(bytes);
    return plan;
  }
  if (Hit(Fault::kShort)) {
    plan.limit = std::max<uint64_t>(random_() % (bytes + 1) / kBlock * kBlock, kBlock);
    plan.hidden = random_() % 2 == 0 ? 0 : random_() % kBlock;
  }
  if (Hit(Fault::kDelay)) plan.delay = std::chrono::milliseconds(1 + random_() % kMaxDelayMs);
  if (disk_modelled_ && op.kind == IoOp::Kind::kWrite) {
    disk_.NoteRecords(op);
    disk_.WriteBegun(op.fd, op.offset, std::min(bytes, plan.limit));
  }
  return plan;
}

// True when the write is answered: it went wrong, and nobody knows.
bool FaultySystem::PlanDamage(const IoOp& op, uint64_t bytes) {
  const bool torn = Hit(Fault::kTornWrite);
  if (!torn && !Hit(Fault::kMisdirectedWrite)) return false;
  disk_.NoteRecords(op);
  disk_.WriteBegun(op.fd, op.offset, bytes);
  const bool went = torn ? disk_.WriteTorn(op, random_) : disk_.WriteElsewhere(op, random_);
  disk_.WriteEnded(op.fd, op.offset, bytes);
  if (went) disk_.Damage(op.fd, op.offset, bytes);
  return went;
}

void FaultySystem::OpEnded(const IoOp& op, const Plan& plan, int64_t result) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!disk_modelled_ || result < 0) return;
  if (op.kind == IoOp::Kind::kSync) disk_.SyncEnded(op.fd, plan.sync_begun);
  if (op.kind != IoOp::Kind::kWrite) return;
  disk_.WriteEnded(op.fd, op.offset, static_cast<uint64_t>(result));
  disk_.Mend(op.fd, op.offset, static_cast<uint64_t>(result));
}

const char* FaultySystem::KindOf(const std::string& path) const {
  if (path.find("/superblock") != std::string::npos) return "superblock";
  if (path.find(".tseg") != std::string::npos) return "segment";
  if (path.find("/probe") != std::string::npos) return "probe";
  return "directory";
}

std::string FaultySystem::LabelOf(int fd, const char* call) const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto kind = kinds_.find(fd);
  return std::string(kind == kinds_.end() ? "file" : kind->second) + "." + call;
}

absl::StatusOr<std::unique_ptr<nvme::IoEngine>> FaultySystem::MakeEngine(nvme::EngineChoice choice,
                                                                         uint32_t depth) {
  Reach("engine.make.before");
  auto engine = real_.MakeEngine(choice, depth);
  if (!engine.ok()) return engine.status();
  Reach("engine.make.after");
  return std::unique_ptr<nvme::IoEngine>(std::make_unique<FaultyEngine>(*this, *std::move(engine)));
}

int FaultySystem::Open(const std::string& path, int flags) {
  const std::string label = std::string(KindOf(path)) + ".open";
  Reach(label + ".before");
  const bool created = (flags & O_CREAT) != 0 && !Exists(path);
  const int fd = real_.Open(path, flags);
  if (fd >= 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    kinds_[fd] = KindOf(path);
    disk_.Opened(fd, path, created, (flags & O_TRUNC) != 0);
  }
  Reach(label + ".after");
  return fd;
}

int FaultySystem::Allocate(int fd, uint64_t bytes) {
  const std::string label = LabelOf(fd, "allocate");
  Reach(label + ".before");
  int64_t error = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    error = ErrorOf(IoOp::Kind::kWrite);
  }
  const int result = error < 0 ? static_cast<int>(error) : real_.Allocate(fd, bytes);
  Reach(label + ".after");
  return result;
}

int FaultySystem::Truncate(int fd, uint64_t bytes) {
  const std::string label = LabelOf(fd, "truncate");
  Reach(label + ".before");
  const int result = real_.Truncate(fd, bytes);
  Reach(label + ".after");
  return result;
}

int64_t FaultySystem::Read(int fd, void* to, uint64_t bytes, uint64_t offset) {
  const std::string label = LabelOf(fd, "read");
  Reach(label + ".before");
  int64_t error = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    error = ErrorOf(IoOp::Kind::kRead);
    if (error == 0 && bytes > kBlock && Hit(Fault::kShort)) {
      bytes = std::max<uint64_t>(random_() % bytes / kBlock * kBlock, kBlock);
    }
  }
  const int64_t result = error < 0 ? error : real_.Read(fd, to, bytes, offset);
  Reach(label + ".after");
  return result;
}

int64_t FaultySystem::Write(int fd, const void* from, uint64_t bytes, uint64_t offset) {
  const std::string label = LabelOf(fd, "write");
  Reach(label + ".before");
  int64_t result = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    result = ErrorOf(IoOp::Kind::kWrite);
    if (result == 0 && disk_modelled_) disk_.WriteBegun(fd, offset, bytes);
  }
  if (result == 0) {
    result = real_.Write(fd, from, bytes, offset);
    std::lock_guard<std::mutex> lock(mutex_);
    if (disk_modelled_) disk_.WriteEnded(fd, offset, bytes);
  }
  Reach(label + ".after");
  return result;
}

int FaultySystem::Sync(int fd) {
  const std::string label = LabelOf(fd, "sync");
  Reach(label + ".before");
  int64_t result = 0;
  bool lost = false;
  uint64_t begun = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    result = ErrorOf(IoOp::Kind::kSync);
    lost = result == 0 && Hit(Fault::kLostSync);
    if (disk_modelled_) begun = disk_.SyncBegun(fd);
  }
  if (result == 0 && !lost) {
    result = real_.Sync(fd);
    std::lock_guard<std::mutex> lock(mutex_);
    if (disk_modelled_ && result == 0) disk_.SyncEnded(fd, begun);
  }
  Reach(label + ".after");
  return static_cast<int>(result);
}

int FaultySystem::SyncDirectory(const std::string& path) {
  Reach("directory.sync.before");
  int64_t result = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    result = ErrorOf(IoOp::Kind::kSync);
  }
  if (result == 0) {
    result = real_.SyncDirectory(path);
    std::lock_guard<std::mutex> lock(mutex_);
    if (result == 0) disk_.DirectorySynced(path);
  }
  Reach("directory.sync.after");
  return static_cast<int>(result);
}

int FaultySystem::Rename(const std::string& from, const std::string& to) {
  Reach("directory.rename.before");
  const int result = real_.Rename(from, to);
  Reach("directory.rename.after");
  return result;
}

int FaultySystem::Unlink(const std::string& path) {
  const std::string label = std::string(KindOf(path)) + ".unlink";
  Reach(label + ".before");
  const int result = real_.Unlink(path);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (result == 0) disk_.Removed(path);
  }
  Reach(label + ".after");
  return result;
}

absl::Status FaultySystem::IndexFault() {
  Reach("index.write");
  std::lock_guard<std::mutex> lock(mutex_);
  if (!Hit(Fault::kIndexError)) return absl::OkStatus();
  return absl::UnavailableError("index: injected failure");
}

}  // namespace terrace
