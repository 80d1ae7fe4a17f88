// policy: what eviction policies cost with 1,000,000 objects, in time of one core. Ids are made up
// and drawn uniformly, the worst case for caches; of ten accesses nine touch and one replaces, half
// of those with an object that left before. With prefixes, extents come in chains of eight, and a
// use touches a whole prefix, its deepest extent first. The reference is the least that any such
// policy can do: a bare doubly linked list in an array, moved to its end and popped at its front by
// the same ids.
#include <malloc.h>
#include <time.h>

#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "tiers/eviction/registry.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kObjects = 1'000'000;
constexpr uint32_t kAccesses = 1'000'000;  // a pair
constexpr uint32_t kTouchesPerEviction = 9;
constexpr uint32_t kPrefixExtents = 8;
constexpr uint64_t kObjectBytes = uint64_t{1} << 20;
constexpr double kBarBytesPerObject = 96;
constexpr int kWarmUps = 8;  // until ghosts are about as many as they get
constexpr int kPairs = 7;

constexpr uint32_t kReplace = 0xffffffffu;  // among ids to touch

// On the processor: other load on the machine is not the policy's.
double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// What is asked, in order.
std::vector<uint32_t> RandomAccesses(bool prefixes) {
  std::mt19937_64 random(1);
  std::uniform_int_distribution<uint32_t> draw(0, kObjects - 1);
  std::vector<uint32_t> accesses;
  uint32_t touches = 0;
  while (accesses.size() < kAccesses) {
    const uint32_t id = draw(random), first = prefixes ? id - id % kPrefixExtents : id;
    for (uint32_t extent = id + 1; extent-- > first; ++touches) accesses.push_back(extent);
    for (; touches >= kTouchesPerEviction; touches -= kTouchesPerEviction) {
      accesses.push_back(kReplace);
    }
  }
  return accesses;
}

class BareList {
 public:
  BareList() : links_(kObjects + 1) {
    for (uint32_t id = 0; id <= kObjects; ++id) {
      links_[id] = {id == 0 ? kObjects : id - 1, id == kObjects ? 0 : id + 1};
    }
  }

  double Run(const std::vector<uint32_t>& accesses) {
    const double start = ThreadSeconds();
    for (const uint32_t id : accesses) MoveToEnd(id == kReplace ? links_[kObjects].newer : id);
    return ThreadSeconds() - start;
  }

 private:
  struct Link {
    uint32_t older, newer;
  };

  void MoveToEnd(uint32_t id) {
    const Link link = links_[id];
    links_[link.older].newer = link.newer;
    links_[link.newer].older = link.older;
    links_[id] = {links_[kObjects].older, kObjects};
    links_[links_[kObjects].older].newer = id;
    links_[kObjects].older = id;
  }

  std::vector<Link> links_;  // the last one is both ends
};

uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

// An owner whose tier is full from the start.
class Owner {
 public:
  static absl::StatusOr<std::unique_ptr<Owner>> Make(const PolicyEntry& entry, bool prefixes) {
    auto owner = std::make_unique<Owner>();
    owner->hints_ = entry.needs_hints;
    PolicyContext context;
    context.capacity_bytes = kObjects * kObjectBytes;
    context.prefixes = prefixes;
    context.now = [owner = owner.get()] { return owner->accesses_; };
    owner->left_.assign(kObjects, 0);
    const uint64_t before = HeapBytes();
    auto policy = NewPolicy(entry.name, context);
    if (!policy.ok()) return policy.status();
    owner->policy_ = *std::move(policy);
    owner->bytes_before_ = before;
    for (PolicyId id = kObjects; id-- > 0;) {
      const PolicyId parent = prefixes && id % kPrefixExtents != 0 ? id - 1 : kNoPolicyId;
      owner->Track(id, owner->NewHead(), parent);
    }
    return owner;
  }

  double Run(const std::vector<uint32_t>& accesses) {
    const double start = ThreadSeconds();
    for (const uint32_t id : accesses) {
      ++accesses_;
      if (id == kReplace) {
        Replace();
      } else {
        policy_->Touch(id);
        if (hints_) Hint(id);
      }
    }
    return ThreadSeconds() - start;
  }

  // Of the policy's own, with all that it remembers.
  double BytesPerObject() const {
    return static_cast<double>(HeapBytes() - bytes_before_) / kObjects;
  }

 private:
  // Heads as a hash gives them.
  uint64_t NewHead() { return random_(); }

  void Track(PolicyId id, uint64_t head, PolicyId parent) {
    TrackInfo info;
    info.bytes = kObjectBytes;
    info.cost_us = 1000 + head % 1000;
    info.key_head = head;
    info.parent = parent;
    policy_->Track(id, info);
    heads_[id] = head;
    if (hints_) Hint(id);
  }

  void Replace() {
    const std::optional<PolicyId> victim = policy_->Evict([](PolicyId) { return true; });
    if (!victim) return;
    uint64_t head = NewHead();
    if (head % 2 == 0) {  // one that left a while ago, if any did yet
      const uint64_t back = left_[head / 2 % kObjects];
      if (back != 0) head = back;
    }
    left_[evictions_++ % kObjects] = heads_[*victim];
    Track(*victim, head, kNoPolicyId);
  }

  void Hint(PolicyId id) {
    const uint64_t wait = (accesses_ * 0x9e3779b97f4a7c15u) >> 43;  // up to two million accesses
    policy_->Hint(id, wait % 4 == 0 ? kNeverUsed : accesses_ + wait, 1);
  }

  std::unique_ptr<EvictionPolicy> policy_;
  bool hints_ = false;
  uint64_t accesses_ = 0, evictions_ = 0, bytes_before_ = 0;
  std::mt19937_64 random_{2};
  std::vector<uint64_t> heads_ = std::vector<uint64_t>(kObjects);  // by id
  std::vector<uint64_t> left_;                                     // heads of what left, a ring
};

absl::Status Measure(const PolicyEntry& entry, bool prefixes, std::vector<Row>* rows) {
  const std::string name = absl::StrCat(std::string(entry.name), prefixes ? "_prefixes" : "");
  Progress(absl::StrCat("policy: ", name));
  const std::vector<uint32_t> accesses = RandomAccesses(prefixes);
  BareList reference;
  const auto owner = Owner::Make(entry, prefixes);
  if (!owner.ok()) return owner.status();
  const double millions = static_cast<double>(accesses.size()) / 1e6;
  std::vector<Pair> pairs;
  for (int i = -kWarmUps; i < kPairs; ++i) {
    const double ours = (*owner)->Run(accesses);
    const double least = reference.Run(accesses);
    if (i >= 0) pairs.push_back({millions / ours, millions / least});
  }
  rows->push_back(MakeRow(name + "_rate", "M accesses/s", "a bare linked list", pairs));
  rows->back().note = "synthetic: uniform ids, 90% touch, 10% evict and track";
  rows->push_back(MakeRow(name + "_bytes", "B an object", "the bar",
                          {{(*owner)->BytesPerObject(), kBarBytesPerObject}}));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunPolicy(const Context&) {
  std::vector<Row> rows;
  for (const PolicyEntry& entry : Policies()) {
    for (const bool prefixes : {false, true}) {
      if (prefixes && entry.name != "lru" && entry.name != "default") continue;
      if (absl::Status status = Measure(entry, prefixes, &rows); !status.ok()) return status;
    }
  }
  return rows;
}

}  // namespace terrace::bench
