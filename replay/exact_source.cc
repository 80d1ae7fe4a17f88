#include "replay/exact_source.h"

#include <random>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "tiers/eviction/registry.h"

namespace terrace::replay {
namespace {

// The two values of a bit, and which of them are turned round.
class Bits {
 public:
  explicit Bits(const Predictions& how) : random_(how.seed), flip_(how.flip) {}
  uint64_t Of(bool no_use) { return no_use != flip_(random_) ? kNeverUsed : kUnknownUse; }

 private:
  std::mt19937_64 random_;
  std::bernoulli_distribution flip_;
};

class ExactSource final : public RequestSource {
 public:
  ExactSource(std::unique_ptr<TraceReader> reader, NumberFile uses)
      : reader_(std::move(reader)), uses_(std::move(uses)) {}

  absl::StatusOr<bool> Next(KnownRequest& next) override {
    const auto more = reader_->Next(next.request);
    if (!more.ok()) return more.status();
    if (!*more) return false;
    const size_t count = next.request.accesses.size();
    if (uses_.size() - accesses_ < count) {
      return absl::FailedPreconditionError("the trace has grown since it was read first");
    }
    next.number = requests_++;
    next.first_access = accesses_;
    next.sightings.clear();
    next.next_uses.clear();
    for (size_t i = 0; i < count; ++i) {
      const auto use = uses_.At(accesses_++);
      if (!use.ok()) return use.status();
      next.next_uses.push_back(*use);
    }
    return true;
  }

 private:
  std::unique_ptr<TraceReader> reader_;
  NumberFile uses_;
  uint64_t requests_ = 0, accesses_ = 0;
};

}  // namespace

absl::StatusOr<NumberFile> ExactNextUses(TraceReader& reader) {
  auto file = NumberFile::Create();
  if (!file.ok()) return file.status();
  Request request;
  while (true) {
    const auto more = reader.Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (const Access& access : request.accesses) {
      if (absl::Status status = file->Append(access.key); !status.ok()) return status;
    }
  }
  absl::flat_hash_map<uint64_t, uint64_t> next_of;
  const absl::Status status = file->RewriteBackwards([&next_of](uint64_t index, uint64_t key) {
    const auto [next, last] = next_of.try_emplace(key, kNeverUsed);
    return std::exchange(next->second, index);
  });
  if (!status.ok()) return status;
  return file;
}

absl::StatusOr<NumberFile> DiscardBits(std::unique_ptr<RequestSource> exact,
                                       const SimulatorOptions& options, const Predictions& how) {
  auto simulator = Simulator::Create(
      options, [](const PolicyContext& context) { return NewPolicy("min", context); });
  if (!simulator.ok()) return simulator.status();
  auto file = NumberFile::Create();
  if (!file.ok()) return file.status();
  absl::Status failed;
  (*simulator)->OnEvict([&](uint64_t last_access) { failed.Update(file->Set(last_access, 1)); });
  KnownRequest request;
  while (true) {
    const auto more = exact->Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (size_t i = 0; i < request.next_uses.size(); ++i) failed.Update(file->Append(0));
    failed.Update((*simulator)->Serve(request));
    if (!failed.ok()) return failed;
  }
  Bits bits(how);
  const absl::Status status =
      file->RewriteBackwards([&](uint64_t, uint64_t evicted) { return bits.Of(evicted != 0); });
  if (!status.ok()) return status;
  return file;
}

absl::Status PhaseBits(TraceReader& reader, const SimulatorOptions& options, const Predictions& how,
                       NumberFile& uses) {
  std::vector<uint64_t> starts = {0};  // of each phase, the number of its first access
  absl::flat_hash_set<uint64_t> wanted;
  uint64_t room = 0, access_number = 0;
  Request request;
  while (true) {
    const auto more = reader.Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (const Access& access : request.accesses) {
      const uint64_t own = options.capacity_in_objects ? 1 : access.size;
      if (!wanted.contains(access.key) && room + own > options.capacity) {
        starts.push_back(access_number);
        wanted.clear();
        room = 0;
      }
      if (wanted.insert(access.key).second) room += own;
      ++access_number;
    }
  }
  starts.insert(starts.end(), 2, kUnknownUse);  // after the last phase nothing is known
  Bits bits(how);
  size_t phase = starts.size() - 3;
  return uses.RewriteBackwards([&](uint64_t index, uint64_t next_use) {
    while (index < starts[phase]) --phase;
    return bits.Of(next_use >= starts[phase + 2]);
  });
}

std::unique_ptr<RequestSource> NewExactSource(std::unique_ptr<TraceReader> reader,
                                              NumberFile uses) {
  return std::make_unique<ExactSource>(std::move(reader), std::move(uses));
}

}  // namespace terrace::replay
