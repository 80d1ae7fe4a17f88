#include "daemon/prefetch/prefetcher.h"

#include <algorithm>

namespace terrace {

namespace {

double TransferUs(const PrefetchLink& link, uint64_t bytes) {
  return static_cast<double>(bytes) / link.bytes_per_s * 1e6;
}

}  // namespace

Prefetcher::Prefetcher(const PrefetchOptions& options, Lookahead* lookahead,
                       std::function<uint64_t()> now)
    : options_(options),
      lookahead_(lookahead),
      walker_(lookahead->AddWalker()),
      now_(std::move(now)),
      reviewed_at_(now_()),
      review_us_(options.review_us) {}

// Fills in what a prefetch of it would save and cost.
bool Prefetcher::WorthMoving(const FutureUse& use, const PrefetchTarget& target,
                             const PrefetchLink& link, Flight* flight) const {
  const double own_us = TransferUs(link, target.bytes);
  const double transfer_us =
      static_cast<double>(link.latency_us) + TransferUs(link, link.queued_bytes) + own_us;
  const double slack_us = static_cast<double>(use.due - now_());
  if (slack_us < transfer_us) return false;  // too late
  const double stall_us = target.stall_us != 0 ? static_cast<double>(target.stall_us)
                                               : static_cast<double>(link.latency_us) + own_us;
  const double link_us = own_us * std::max(link.utilisation, options_.least_utilisation);
  const double cost_us = link_us + static_cast<double>(target.victim_loss_us);
  const double p = use.probability;
  *flight = {use.source, Lookahead::UrgencyClass(use.source),         use.due, target.bytes, 0, 0,
             stall_us,   account(use.source).on() ? link_us : cost_us};
  return p * stall_us - (1 - p) * cost_us > 0;
}

// Puts the next object of a class that is worth it among the flights, or in the shadow.
void Prefetcher::Find(int urgency, const PrefetchLink& link, uint64_t window_end,
                      absl::FunctionRef<PrefetchTarget(uint64_t)> target, int* looks) {
  Lookahead::Position& cursor = cursors_[urgency];
  while (flights_.size() < options_.max_objects && --*looks >= 0) {
    const Lookahead::Position before = cursor;
    const std::optional<FutureUse> use = lookahead_->Walk(urgency, &cursor);
    if (!use) return;
    if (use->due >= window_end) {
      cursor = before;
      return;
    }
    if (flights_.contains(use->key_head)) continue;
    if (!on(use->source) && shadows_.contains(use->key_head)) continue;
    const PrefetchTarget wanted = target(use->key_head);
    if (wanted.bytes == 0) continue;
    Flight flight;
    if (!WorthMoving(*use, wanted, link, &flight)) {
      rejected_ = true;
      continue;
    }
    if (!on(use->source)) {
      rejected_ = true;
      Imagine(use->key_head, flight, link);
      continue;
    }
    uint64_t& unjudged = unjudged_bytes_[Index(use->source)];
    if (account(use->source).verdicts() < options_.trial_verdicts && unjudged > 0 &&
        unjudged + flight.bytes > options_.trial_bytes) {
      rejected_ = true;
      continue;
    }
    unjudged += flight.bytes;
    review_us_ = options_.review_us;
    flights_.emplace(use->key_head, flight);
    ready_.insert({urgency, flight.due, use->key_head});
    return;
  }
}

// The first object of a class whose next piece may be issued. Of a request that runs already, the
// rest is for its demand to move.
std::optional<uint64_t> Prefetcher::FirstReady(int urgency) const {
  for (auto it = ready_.lower_bound({urgency, 0, 0});
       it != ready_.end() && std::get<0>(*it) == urgency; ++it) {
    const uint64_t key_head = std::get<2>(*it);
    if (lookahead_->StandingOf(key_head) == Lookahead::Standing::kAnnounced) return key_head;
  }
  return std::nullopt;
}

std::optional<PrefetchPiece> Prefetcher::Next(const PrefetchLink& link, uint64_t window_end,
                                              absl::FunctionRef<PrefetchTarget(uint64_t)> target) {
  Review();
  int looks = kUsesPerCall;
  for (int urgency = 0; urgency < Lookahead::kUrgencyClasses; ++urgency) {
    cursors_[urgency] = std::min(cursors_[urgency], lookahead_->TakeEarliestNew(walker_, urgency));
    std::optional<uint64_t> first = FirstReady(urgency);  // what has begun is finished first
    if (!first) {
      Find(urgency, link, window_end, target, &looks);
      first = FirstReady(urgency);
    }
    if (first) return Issue(*first);
  }
  return std::nullopt;
}

PrefetchPiece Prefetcher::Issue(uint64_t key_head) {
  Flight& flight = flights_.at(key_head);
  const uint64_t bytes = std::min(options_.piece_bytes, flight.bytes - flight.issued);
  const PrefetchPiece piece{key_head,     flight.issued, bytes,
                            flight.bytes, flight.due,    flight.source};
  PrefetchCounters& count = counters_[Index(flight.source)];
  count.issued += flight.issued == 0 ? 1 : 0;
  count.issued_bytes += bytes;
  flight.issued += bytes;
  if (flight.issued == flight.bytes) ready_.erase({flight.urgency, flight.due, key_head});
  return piece;
}

void Prefetcher::Refused(uint64_t key_head) {
  const auto found = flights_.find(key_head);
  if (found == flights_.end()) return;
  const Flight flight = found->second;
  flights_.erase(found);
  ready_.erase({flight.urgency, flight.due, key_head});
  unjudged_bytes_[Index(flight.source)] -= flight.bytes;
  rejected_ = true;
  PrefetchCounters& count = counters_[Index(flight.source)];
  ++count.refused;
  if (flight.arrived == 0) {  // as if it had not been
    count.issued -= flight.issued > 0 ? 1 : 0;
    count.issued_bytes -= flight.issued;
  }
}

bool Prefetcher::Arrived(uint64_t key_head, uint64_t bytes) {
  const auto found = flights_.find(key_head);
  if (found == flights_.end()) return false;
  Flight& flight = found->second;
  flight.arrived += bytes;
  if (flight.arrived < flight.bytes) return false;
  displaced_.erase(key_head);  // it is back
  landed_.insert_or_assign(key_head, flight);
  flights_.erase(found);
  return true;
}

void Prefetcher::Judge(const Flight& flight, double gain_us, double cost_us) {
  unjudged_bytes_[Index(flight.source)] -= flight.bytes;
  // What was imagined while it was off and what was moved before are not mixed.
  if (on(flight.source)) accounts_[Index(flight.source)].Record(gain_us, cost_us);
}

std::vector<uint64_t> Prefetcher::TakeCancelled() {
  std::vector<uint64_t> cancelled;
  for (const auto& [urgency, due, key_head] : ready_) {
    if (lookahead_->StandingOf(key_head) == Lookahead::Standing::kGone) {
      cancelled.push_back(key_head);
    }
  }
  for (const uint64_t key_head : cancelled) {
    const Flight& flight = flights_.at(key_head);
    Cancelled(key_head, static_cast<double>(flight.issued) / static_cast<double>(flight.bytes));
  }
  return cancelled;
}

void Prefetcher::Cancelled(uint64_t key_head, double arrived) {
  const auto found = flights_.find(key_head);
  if (found == flights_.end()) return;
  const Flight flight = found->second;
  flights_.erase(found);
  ready_.erase({flight.urgency, flight.due, key_head});
  PrefetchCounters& count = counters_[Index(flight.source)];
  ++count.cancelled;
  count.unused_bytes += static_cast<uint64_t>(arrived * static_cast<double>(flight.bytes));
  Judge(flight, 0, flight.cost_us * arrived);
}

Prefetcher::Demanded Prefetcher::Demand(uint64_t key_head, std::optional<double> arrived) {
  if (const auto loss = displaced_.find(key_head); loss != displaced_.end()) {
    const HintSource source = loss->second.source;
    ++counters_[Index(source)].pollution;
    if (on(source)) accounts_[Index(source)].Record(0, static_cast<double>(loss->second.stall_us));
    displaced_.erase(loss);
  }
  if (const auto shadow = shadows_.find(key_head); shadow != shadows_.end()) {
    const Shadow imagined = shadow->second;
    shadows_.erase(shadow);
    if (!on(imagined.source)) {
      accounts_[Index(imagined.source)].Record(now_() >= imagined.ready_at ? imagined.gain_us : 0,
                                               0);
    }
  }
  if (const auto landed = landed_.find(key_head); landed != landed_.end()) {
    const Flight flight = landed->second;
    landed_.erase(landed);
    ++counters_[Index(flight.source)].timely;
    Judge(flight, flight.gain_us, 0);
    return {Demanded::Outcome::kTimely, flight.bytes};
  }
  const auto found = flights_.find(key_head);
  if (found == flights_.end()) return {};
  const Flight flight = found->second;
  flights_.erase(found);
  ready_.erase({flight.urgency, flight.due, key_head});
  ++counters_[Index(flight.source)].late;
  const double issued = static_cast<double>(flight.issued) / static_cast<double>(flight.bytes);
  Judge(flight, flight.gain_us * arrived.value_or(issued), 0);
  return {Demanded::Outcome::kJoined, flight.issued};
}

void Prefetcher::Displaced(uint64_t key_head, uint64_t victim, uint64_t stall_us) {
  const auto flight = flights_.find(key_head);
  if (flight == flights_.end()) return;
  if (displaced_.insert_or_assign(victim, Loss{flight->second.source, stall_us}).second) {
    displaced_order_.push_back(victim);
  }
  while (displaced_order_.size() > kMaxDisplaced) {
    displaced_.erase(displaced_order_.front());
    displaced_order_.pop_front();
  }
}

void Prefetcher::JudgeUnused(const Flight& flight) {
  PrefetchCounters& count = counters_[Index(flight.source)];
  ++count.unused;
  count.unused_bytes += flight.bytes;
  Judge(flight, 0, flight.cost_us);
}

void Prefetcher::Left(uint64_t key_head) {
  if (const auto landed = landed_.find(key_head); landed != landed_.end()) {
    JudgeUnused(landed->second);
    landed_.erase(landed);
  }
  Appeared(key_head);
}

void Prefetcher::Appeared(uint64_t key_head) {
  for (int urgency = 0; urgency < Lookahead::kUrgencyClasses; ++urgency) {
    cursors_[urgency] = std::min(cursors_[urgency], lookahead_->PositionOf(urgency, key_head));
  }
}

void Prefetcher::Imagine(uint64_t key_head, const Flight& flight, const PrefetchLink& link) {
  if (shadows_.size() >= kMaxShadows) return;
  const uint64_t now = now_();
  uint64_t& free_at = shadow_free_at_[Index(flight.source)];
  free_at = std::max(now, free_at) + static_cast<uint64_t>(TransferUs(link, flight.bytes));
  ++counters_[Index(flight.source)].shadow;
  shadows_.insert_or_assign(
      key_head, Shadow{flight.source, free_at + link.latency_us, flight.gain_us, flight.cost_us});
}

// Starts the walks over, and judges what was moved or imagined and is wanted by nobody any more.
void Prefetcher::Review() {
  const uint64_t now = now_();
  if (now - reviewed_at_ < review_us_) return;
  reviewed_at_ = now;
  if (rejected_) {
    cursors_.fill({});
    review_us_ = std::min(2 * review_us_, 16 * options_.review_us);
    rejected_ = false;
  }
  for (auto it = landed_.begin(); it != landed_.end();) {
    if (lookahead_->StandingOf(it->first) != Lookahead::Standing::kGone) {
      ++it;
      continue;
    }
    JudgeUnused(it->second);
    landed_.erase(it++);
  }
  for (auto it = shadows_.begin(); it != shadows_.end();) {
    if (lookahead_->StandingOf(it->first) != Lookahead::Standing::kGone) {
      ++it;
      continue;
    }
    if (!on(it->second.source)) accounts_[Index(it->second.source)].Record(0, it->second.cost_us);
    shadows_.erase(it++);
  }
}

}  // namespace terrace
