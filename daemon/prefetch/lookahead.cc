#include "daemon/prefetch/lookahead.h"

#include <algorithm>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace terrace {

namespace {

constexpr uint64_t kEnd = std::numeric_limits<uint64_t>::max();
constexpr Lookahead::Position kEndPosition{kEnd, kEnd, 0xffffffffu};
constexpr int kUsesLookedAt = 8;

uint64_t Shifted(uint64_t time, int64_t by) {
  if (by < 0) return time - std::min(time, static_cast<uint64_t>(-by));
  return std::min(kUnknownUse - 1, time + static_cast<uint64_t>(by));
}

}  // namespace

int Lookahead::UrgencyClass(HintSource source) {
  switch (source) {
    case HintSource::kExperts:
      return 0;
    case HintSource::kQueue:
    case HintSource::kDocuments:
      return 1;
    case HintSource::kSession:
      return 2;
  }
  return 2;
}

Lookahead::Lookahead(const LookaheadOptions& options, std::function<uint64_t()> now)
    : options_(options), now_(std::move(now)) {}

absl::Status Lookahead::Check(const Announcement& announcement, size_t replaced_uses,
                              bool known) const {
  if (static_cast<size_t>(announcement.source) >= kHintSources) {
    return absl::InvalidArgumentError(absl::StrCat("source is ",
                                                   static_cast<int>(announcement.source),
                                                   "; accepted: 0 .. ", kHintSources - 1));
  }
  for (const AnnouncedKey& key : announcement.keys) {
    if (!(key.confidence >= 0 && key.confidence <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("confidence is ", key.confidence, "; accepted: 0 .. 1"));
    }
  }
  if (!known && announced_.size() >= options_.max_requests) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "announced requests: at most ", options_.max_requests, " of all engines together"));
  }
  if (uses_ - replaced_uses + announcement.keys.size() > options_.max_uses) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "announced objects: at most ", options_.max_uses, " of all requests together; ",
        uses_ - replaced_uses, " are, ", announcement.keys.size(), " more were named"));
  }
  return absl::OkStatus();
}

absl::Status Lookahead::Announce(const Announcement& announcement) {
  Settle();
  const uint64_t known = FindSequence(announcement.source, announcement.request);
  const size_t replaced = known != 0 ? announced_.at(known).uses.size() : 0;
  while (!settling_.empty() && uses_ - replaced + announcement.keys.size() > options_.max_uses) {
    JudgeOldest();  // early: room for what is to come
  }
  if (absl::Status status = Check(announcement, replaced, known != 0); !status.ok()) return status;

  Announced fresh{
      announcement.source, announcement.request, announcement.queue, announcement.order, 0, now_(),
      std::vector<Use>{}};
  if (known != 0) fresh.announced_at = announced_.at(known).announced_at;
  absl::flat_hash_set<uint64_t> named;
  for (const AnnouncedKey& key : announcement.keys) {
    if (!named.insert(key.key_head).second) continue;
    ++objects_[key.key_head].settling;  // keeps it while the old announcement is removed
    fresh.uses.push_back({key.key_head, key.confidence});
  }
  if (known != 0) {
    Announced old = Remove(known);
    uses_ -= std::erase_if(old.uses, [&](const Use& use) { return named.contains(use.key_head); });
    Judge(old, now_() - std::min(now_(), options_.settle), /*settled=*/false);
  }

  const uint64_t sequence = next_sequence_++;
  fresh.due = DueOf(announcement);
  for (uint32_t i = 0; i < fresh.uses.size(); ++i) {
    Object& object = objects_[fresh.uses[i].key_head];
    --object.settling;
    object.uses.insert({fresh.due, sequence, i});
  }
  uses_ += fresh.uses.size();
  const int urgency = UrgencyClass(fresh.source);
  by_due_[urgency].insert({fresh.due, sequence});
  for (auto& earliest : earliest_new_) {
    earliest[urgency] = std::min(earliest[urgency], Position{fresh.due, sequence, 0});
  }
  if (fresh.queue != 0) {
    queues_[fresh.queue].places[{fresh.order, sequence}] = fresh.due;
  }
  by_request_[fresh.request].push_back(sequence);
  announced_.emplace(sequence, std::move(fresh));
  return absl::OkStatus();
}

// On the clock less the lag of the queue, so that the lag moves all of a queue at once.
uint64_t Lookahead::DueOf(const Announcement& announcement) {
  if (announcement.eta == kNeverUsed) return kNeverUsed;
  Queue* queue = announcement.queue != 0 ? &queues_[announcement.queue] : nullptr;
  if (announcement.eta != kUnknownUse) {
    return queue != nullptr ? Shifted(announcement.eta, -queue->lag) : announcement.eta;
  }
  const uint64_t now = now_();
  if (queue == nullptr) {
    const auto same = by_request_.find(announcement.request);
    if (same == by_request_.end() || same->second.empty()) return now + options_.default_wait;
    return EffectiveDue(announced_.at(same->second.front()));
  }
  const uint64_t interval = queue->interval != 0 ? queue->interval : options_.default_wait;
  const auto behind = queue->places.lower_bound({announcement.order, kEnd});
  const uint64_t last_start = queue->last_start != 0 ? queue->last_start : now;
  uint64_t due = Shifted(std::max(now, last_start + interval), -queue->lag);
  if (behind != queue->places.begin()) due = Shifted(std::prev(behind)->second, interval);
  if (behind != queue->places.end()) due = std::min(due, behind->second);
  return due;
}

uint64_t Lookahead::EffectiveDue(const Announced& announced) const {
  if (announced.due == kNeverUsed) return kNeverUsed;
  const auto queue = queues_.find(announced.queue);
  const int64_t lag = queue != queues_.end() ? queue->second.lag : 0;
  return std::max(now_(), Shifted(announced.due, lag));
}

uint64_t Lookahead::FindSequence(HintSource source, uint64_t request) const {
  const auto found = by_request_.find(request);
  if (found == by_request_.end()) return 0;
  for (const uint64_t sequence : found->second) {
    if (announced_.at(sequence).source == source) return sequence;
  }
  return 0;
}

// Out of every order; its uses are neither judged nor taken off uses_.
Lookahead::Announced Lookahead::Remove(uint64_t sequence) {
  const auto found = announced_.find(sequence);
  Announced announced = std::move(found->second);
  announced_.erase(found);
  const auto request = by_request_.find(announced.request);
  std::erase(request->second, sequence);
  if (request->second.empty()) by_request_.erase(request);
  by_due_[UrgencyClass(announced.source)].erase({announced.due, sequence});
  for (uint32_t i = 0; i < announced.uses.size(); ++i) {
    objects_.at(announced.uses[i].key_head).uses.erase({announced.due, sequence, i});
  }
  if (announced.queue != 0) {
    Queue& queue = queues_.at(announced.queue);
    queue.places.erase({announced.order, sequence});
    if (queue.places.empty()) queue.lag = 0;
  }
  return announced;
}

void Lookahead::Judge(const Announced& announced, uint64_t since, bool settled) {
  for (const Use& use : announced.uses) {
    const auto found = objects_.find(use.key_head);
    Object& object = found->second;
    calibration_.Record(announced.source, use.confidence,
                        object.last_demand >= std::max<uint64_t>(1, since));
    if (settled) --object.settling;
    if (object.uses.empty() && object.settling == 0) objects_.erase(found);
  }
  uses_ -= announced.uses.size();
}

void Lookahead::JudgeEarlier(uint64_t sequence) {
  const uint64_t now = now_();
  Judge(Remove(sequence), now - std::min(now, options_.settle), /*settled=*/false);
}

void Lookahead::JudgeOldest() {
  const auto oldest = settling_.begin();
  Judge(oldest->second.announced, oldest->second.since, /*settled=*/true);
  settling_.erase(oldest);
}

void Lookahead::Withdraw(HintSource source, uint64_t request) {
  Settle();
  if (const uint64_t sequence = FindSequence(source, request); sequence != 0) {
    JudgeEarlier(sequence);
  }
}

void Lookahead::Withdraw(uint64_t request) {
  for (size_t i = 0; i < kHintSources; ++i) Withdraw(static_cast<HintSource>(i), request);
}

void Lookahead::EndQueue(uint64_t queue) {
  const auto found = queues_.find(queue);
  if (found == queues_.end()) return;
  while (!found->second.places.empty()) {
    JudgeEarlier(found->second.places.begin()->first.second);
  }
  queues_.erase(found);
}

void Lookahead::Started(uint64_t request) {
  Settle();
  const auto found = by_request_.find(request);
  if (found == by_request_.end()) return;
  const uint64_t now = now_();
  const Sequences sequences = found->second;
  for (const uint64_t sequence : sequences) {
    const Announced& announced = announced_.at(sequence);
    if (announced.queue != 0) {
      Queue& queue = queues_.at(announced.queue);
      // One that waited all the time since the last start tells the pace.
      if (queue.last_start != 0 && announced.announced_at <= queue.last_start) {
        const uint64_t gap = std::max<uint64_t>(1, now - queue.last_start);
        queue.interval = queue.interval == 0 ? gap : (7 * queue.interval + gap) / 8;
      }
      queue.last_start = now;
      if (announced.due != kNeverUsed && queue.places.begin()->first.second == sequence) {
        queue.lag = static_cast<int64_t>(now) - static_cast<int64_t>(announced.due);
      }
    }
    for (const Use& use : announced.uses) ++objects_.at(use.key_head).settling;
    uint64_t since = now - std::min(now, options_.settle / 8), until = now + options_.settle;
    if (announced.source == HintSource::kExperts) {
      since = now;
      const auto queue = queues_.find(announced.queue);
      const uint64_t step = queue != queues_.end() ? queue->second.interval : 0;
      until = now + std::min(options_.settle, step != 0 ? step : options_.settle / 20);
    }
    settling_.emplace(until, Settling{since, Remove(sequence)});
  }
}

void Lookahead::Used(uint64_t key_head) {
  const auto found = objects_.find(key_head);
  if (found != objects_.end()) found->second.last_demand = now_();
}

void Lookahead::Settle() {
  const uint64_t now = now_();
  while (!settling_.empty() && settling_.begin()->first <= now) {
    JudgeOldest();
  }
  for (const auto& order : by_due_) {
    while (!order.empty() && order.begin()->first < now &&
           now - order.begin()->first > options_.expire) {
      const uint64_t sequence = order.begin()->second;
      const uint64_t due = EffectiveDue(announced_.at(sequence));
      if (due > now) break;  // its queue is late
      JudgeEarlier(sequence);
    }
  }
}

FutureUse Lookahead::Describe(const Announced& announced, uint32_t key) const {
  const Use& use = announced.uses[key];
  return {use.key_head,
          announced.request,
          announced.source,
          EffectiveDue(announced),
          calibration_.Probability(announced.source, use.confidence),
          use.confidence};
}

std::optional<FutureUse> Lookahead::NextUse(uint64_t key_head, float min_probability) const {
  const auto found = objects_.find(key_head);
  if (found == objects_.end()) return std::nullopt;
  int looked_at = 0;
  for (const UseAt& at : found->second.uses) {
    if (++looked_at > kUsesLookedAt) break;
    const FutureUse use = Describe(announced_.at(at.sequence), at.key);
    const bool known = calibration_.judged(use.source) >= options_.trial_hints;
    if (min_probability <= 0 || (known && use.probability >= min_probability)) return use;
  }
  return std::nullopt;
}

Lookahead::Standing Lookahead::StandingOf(uint64_t key_head) const {
  const auto found = objects_.find(key_head);
  if (found == objects_.end()) return Standing::kGone;
  const Object& object = found->second;
  if (!object.uses.empty() && object.uses.begin()->due != kNeverUsed) return Standing::kAnnounced;
  return object.settling > 0 ? Standing::kStarted : Standing::kGone;
}

std::optional<FutureUse> Lookahead::Walk(int urgency_class, Position* position) const {
  const auto& order = by_due_[urgency_class];
  for (auto it = order.lower_bound({position->due, position->sequence});
       it != order.end() && it->first != kNeverUsed; ++it) {
    const Announced& announced = announced_.at(it->second);
    const bool resumed = it->second == position->sequence && it->first == position->due;
    const uint32_t key = resumed ? position->key : 0;
    if (key >= announced.uses.size()) continue;
    *position = {it->first, it->second, key + 1};
    return Describe(announced, key);
  }
  return std::nullopt;
}

Lookahead::Position Lookahead::PositionOf(int urgency_class, uint64_t key_head) const {
  const auto found = objects_.find(key_head);
  if (found == objects_.end()) return kEndPosition;
  int looked_at = 0;
  for (const UseAt& at : found->second.uses) {
    if (++looked_at > kUsesLookedAt) break;
    if (UrgencyClass(announced_.at(at.sequence).source) == urgency_class) {
      return {at.due, at.sequence, at.key};
    }
  }
  return kEndPosition;
}

size_t Lookahead::AddWalker() {
  earliest_new_.emplace_back().fill(Position{});
  return earliest_new_.size() - 1;
}

Lookahead::Position Lookahead::TakeEarliestNew(size_t walker, int urgency_class) {
  return std::exchange(earliest_new_[walker][urgency_class], kEndPosition);
}

Lookahead::Windows Lookahead::ComputeWindows(
    uint64_t upper_bytes, uint64_t lower_bytes,
    absl::FunctionRef<uint64_t(uint64_t key_head)> bytes_of) const {
  Windows windows;
  Position positions[kUrgencyClasses];
  std::optional<FutureUse> next[kUrgencyClasses];
  for (int i = 0; i < kUrgencyClasses; ++i) next[i] = Walk(i, &positions[i]);
  absl::flat_hash_set<uint64_t> counted;
  uint64_t bytes = 0;
  while (true) {
    int first = -1;
    for (int i = 0; i < kUrgencyClasses; ++i) {
      if (next[i] && (first < 0 || next[i]->due < next[first]->due)) first = i;
    }
    if (first < 0) return windows;
    const FutureUse use = *next[first];
    next[first] = Walk(first, &positions[first]);
    if (!counted.insert(use.key_head).second) continue;
    bytes += bytes_of(use.key_head);
    if (bytes > upper_bytes) windows.prefetch_end = std::min(windows.prefetch_end, use.due);
    if (bytes > upper_bytes && bytes - upper_bytes > lower_bytes) {
      windows.eviction_end = use.due;
      return windows;
    }
  }
}

}  // namespace terrace
