#include <cstddef>
#include <deque>
#include <utility>

#include "replay/request_source.h"

namespace terrace::replay {
namespace {

class WindowSource final : public RequestSource {
 public:
  WindowSource(std::unique_ptr<TraceReader> reader, uint32_t window)
      : reader_(std::move(reader)), window_(window) {}

  absl::StatusOr<bool> Next(KnownRequest& next) override {
    spare_.push_back(std::move(next));
    sightings_.clear();
    while (!ended_ && queue_.size() <= window_) {
      if (absl::Status status = ReadOne(); !status.ok()) return status;
    }
    if (queue_.empty()) return false;
    next = std::move(queue_.front());
    queue_.pop_front();
    LeaveView(next);
    std::swap(next.sightings, sightings_);
    return true;
  }

 private:
  absl::Status ReadOne() {
    KnownRequest entering;
    if (!spare_.empty()) {
      entering = std::move(spare_.back());
      spare_.pop_back();
    }
    const auto more = reader_->Next(entering.request);
    if (!more.ok()) return more.status();
    ended_ = !*more;
    if (ended_) return absl::OkStatus();
    entering.number = requests_++;
    entering.first_access = accesses_;
    accesses_ += entering.request.accesses.size();
    entering.next_uses.assign(entering.request.accesses.size(), kUnknownUse);
    queue_.push_back(std::move(entering));
    if (window_ > 0) EnterView(queue_.back());
    return absl::OkStatus();
  }

  void EnterView(KnownRequest& entering) {
    for (size_t i = 0; i < entering.request.accesses.size(); ++i) {
      const uint64_t key = entering.request.accesses[i].key;
      const uint64_t use = entering.first_access + i;
      const Place here{entering.number, static_cast<uint32_t>(i)};
      const auto [last, first_in_view] = last_in_view_.try_emplace(key, here);
      if (first_in_view) {
        sightings_.push_back({key, use});
        continue;
      }
      KnownRequest& before = queue_[last->second.request - queue_.front().number];
      before.next_uses[last->second.access] = use;
      last->second = here;
    }
  }

  // The request is served: what it wants is in view only if it is wanted again.
  void LeaveView(const KnownRequest& served) {
    if (window_ == 0) return;
    for (size_t i = 0; i < served.request.accesses.size(); ++i) {
      const auto last = last_in_view_.find(served.request.accesses[i].key);
      if (last != last_in_view_.end() && last->second.request == served.number) {
        last_in_view_.erase(last);
      }
    }
    const uint64_t end = served.first_access + served.request.accesses.size();
    std::erase_if(sightings_, [&](const Sighting& sighting) {
      return sighting.use >= served.first_access && sighting.use < end;
    });
  }

  struct Place {
    uint64_t request;
    uint32_t access;
  };

  std::unique_ptr<TraceReader> reader_;
  const uint32_t window_;
  bool ended_ = false;
  uint64_t requests_ = 0, accesses_ = 0;
  std::deque<KnownRequest> queue_;   // front: served next
  std::vector<KnownRequest> spare_;  // whose vectors are used again
  absl::flat_hash_map<uint64_t, Place> last_in_view_;
  std::vector<Sighting> sightings_;
};

}  // namespace

std::unique_ptr<RequestSource> NewWindowSource(std::unique_ptr<TraceReader> reader,
                                               uint32_t window) {
  return std::make_unique<WindowSource>(std::move(reader), window);
}

}  // namespace terrace::replay
