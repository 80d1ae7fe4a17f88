#include "tiers/nvme/admission.h"

namespace terrace::nvme {

namespace {

constexpr size_t kMaxGhosts = 65536;
// Until records have been seen to come back: what the Mooncake trace shows, with the weight of so
// many records.
constexpr double kPriorReuse = 0.24, kPriorRecords = 100;
// Until they are measured: a modest device.
constexpr double kDefaultReadBytesPerS = 500e6, kDefaultWriteBytesPerS = 300e6;

double MicrosecondsFor(uint64_t bytes, double bytes_per_s, double otherwise) {
  return static_cast<double>(bytes) * 1e6 / (bytes_per_s > 0 ? bytes_per_s : otherwise);
}

}  // namespace

double Admission::reuse() const {
  return (static_cast<double>(reused_) + kPriorReuse * kPriorRecords) /
         (static_cast<double>(admitted_) + kPriorRecords);
}

bool Admission::PaysOff(const Candidate& candidate, const Speeds& speeds) const {
  if (candidate.cost_us == 0) return true;
  const double saved =
      static_cast<double>(candidate.cost_us) -
      MicrosecondsFor(candidate.bytes, speeds.read_bytes_per_s, kDefaultReadBytesPerS);
  return reuse() * saved >
         MicrosecondsFor(candidate.bytes, speeds.write_bytes_per_s, kDefaultWriteBytesPerS);
}

bool Admission::TakeGhost(uint64_t head) { return ghosts_.erase(head) > 0; }

void Admission::AddGhost(uint64_t head) {
  ghosts_.insert(head);
  ghost_order_.push_back(head);
  while (ghost_order_.size() > kMaxGhosts) {
    ghosts_.erase(ghost_order_.front());
    ghost_order_.pop_front();
  }
}

bool Admission::Admit(const Candidate& candidate, const Speeds& speeds) {
  const uint64_t head = candidate.key.Head64();
  const bool again = candidate.hinted || TakeGhost(head);
  if (again || policy_ == AdmissionPolicy::kAlways ||
      (policy_ == AdmissionPolicy::kAuto && PaysOff(candidate, speeds))) {
    ++admitted_;
    return true;
  }
  ++rejected_;
  AddGhost(head);
  return false;
}

}  // namespace terrace::nvme
