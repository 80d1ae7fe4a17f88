// Evicts the object whose space is expected to bring the fewest hits an access, weighted by what a
// hit saves (hit density, after N. Beckmann, H. Chen, A. Cidon: LHD: Improving cache hit rate by
// maximizing hit density. NSDI 2018). What differs here:
// - Densities come from reuse times (reuse_times.h), counted over what is in the tier and what is
//   remembered of the past (past_uses.h), so that nothing needs to be kept in order to learn.
// - No sampling of candidates: objects lie in a list for each class and level of age, all of one
//   density, and the least occupied list in order of density gives its oldest.
//
// Classes: the kind of object, how often it was used (0, 1, 2, 3, 4-7, ... 32 and more; one class
// for eight or more cost 5 points on passages), and, of KV that was never used again, whether
// something was stored behind it: a prompt's end is rarely wanted again. Objects of different loss
// per byte are in different lists, a factor of 2 apart.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "tiers/eviction/id_list.h"
#include "tiers/eviction/id_table.h"
#include "tiers/eviction/past_uses.h"
#include "tiers/eviction/policies.h"
#include "tiers/eviction/reuse_times.h"

namespace terrace {

namespace {

constexpr int kLevels = ReuseTimes::kLevels;
constexpr int kKinds = 4;
constexpr int kUseClasses = 8;
constexpr int kKindClasses = kUseClasses + 1;  // and one for ends of prefixes
constexpr uint8_t kAside = kLevels;            // a level: refused, see SetAside
constexpr int kBands = 32;  // of loss per byte: 2^-16 .. 2^15 times the neutral one
constexpr int kNeutralBand = kBands / 2;
// Objects that left are remembered twice as many as there are, and at least so many: small
// tiers need it, for there a return comes after several times their size.
constexpr uint32_t kPastPerObject = 2, kLeastPast = 16384;
// Ages below this share of the number of objects have one level. Each level that an object passes
// costs, more so when objects outgrow the processor's caches.
constexpr uint32_t kYoungShare = 32, kYoungShareOfMany = 8, kMany = 1 << 17;
// Refused candidates are asked again after a 32nd as many accesses as there are objects.
constexpr uint32_t kAsideShare = 32;
// Lists are gone through once in a 128th as many accesses as there are objects (a 512th hits no
// more), in steps of a list or a move.
constexpr uint32_t kRounds = 128;
constexpr int kStepsAnAccess = 32;

struct Entry : IdLink {
  uint32_t tick = 0;  // of the last use, modulo 2^32
  uint32_t tag = 0;
  PolicyId before = kNoPolicyId;  // TrackInfo::parent
  uint16_t row = 0;
  uint8_t level = 0;
  uint8_t uses : 6 = 0;    // saturates
  uint8_t ended : 1 = 0;   // its life ended by a hint: the use itself ends nothing
  uint8_t parent : 1 = 0;  // something was tracked behind it
};

// Of PastUses.
struct Record {
  static uint8_t Of(const Entry& entry) {
    return static_cast<uint8_t>(entry.uses << 2 | entry.ended << 1 | entry.parent);
  }
  static int Uses(uint8_t record) { return record >> 2; }
  static bool Ended(uint8_t record) { return (record & 2) != 0; }
  static bool Parent(uint8_t record) { return (record & 1) != 0; }
};

class HitDensityPolicy final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo& info) override {
    Step();
    if (info.parent != kNoPolicyId) HasChild(info.parent);
    Entry& entry = entries_.At(id);
    const int kind = std::clamp(static_cast<int>(info.kind) - 1, 0, kKinds - 1);
    entry.tag = PastUses::TagOf(info.key_head);
    entry.before = info.parent;
    entry.uses = 0;
    entry.ended = 0;
    if (const auto past = past_.Take(entry.tag)) {
      const int uses = Record::Uses(past->record);
      if (!Record::Ended(past->record)) {
        times_.End(ClassOf(kind, uses, Record::Parent(past->record)), Unwrap(past->tick), now_);
      }
      entry.uses = static_cast<uint8_t>(std::min(uses + 1, kMostUses));
      if (Record::Parent(past->record)) entry.parent = 1;
    }
    ++tracked_;
    entry.tick = static_cast<uint32_t>(now_);
    const int life_class = ClassOf(kind, entry.uses, entry.parent);
    times_.Begin(life_class, now_);
    Append(id, RowOf(life_class, BandOf(info.bytes, info.cost_us)), young_level_);
  }

  void Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) override {
    if (!tracked(id)) return;
    const Entry& entry = entries_[id];
    const Row row = rows_[entry.row];
    const int band = BandOf(bytes, cost_us);
    if (band == row.band) return;
    const int level = entry.level == kAside ? young_level_ : entry.level;
    Remove(id);
    Append(id, RowOf(row.life_class, band), level);
  }

  void Touch(PolicyId id) override {
    if (!tracked(id)) return;
    Step();
    Entry& entry = entries_[id];
    const Row row = rows_[entry.row];
    if (!entry.ended) times_.End(row.life_class, Unwrap(entry.tick), now_);
    Remove(id);
    entry.ended = 0;
    entry.uses = static_cast<uint8_t>(std::min(entry.uses + 1, kMostUses));
    entry.tick = static_cast<uint32_t>(now_);
    const int life_class = ClassOf(row.life_class / kKindClasses, entry.uses, entry.parent);
    times_.Begin(life_class, now_);
    Append(id, RowOf(life_class, row.band), young_level_);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    for (size_t word = 0; word < occupied_.size(); ++word) {
      for (uint64_t bits = occupied_[word]; bits != 0; bits &= bits - 1) {
        List& list = lists_[order_[word * 64 + std::countr_zero(bits)]];
        while (!list.empty()) {
          const PolicyId id = list.oldest();
          if (evictable(id)) return Leave(id);
          SetAside(id);
        }
      }
    }
    for (PolicyId id = aside_.oldest(); id != kEndOfList; id = aside_.NewerThan(id)) {
      if (evictable(id)) return Leave(id);
    }
    return std::nullopt;
  }

  void Forget(PolicyId id) override {
    if (tracked(id)) Leave(id);
  }

  // That it is known to be wanted is what the policy waits for: the life ends. It says nothing
  // about the order: what is known about is not left to this policy (window.h).
  void Hint(PolicyId id, uint64_t next_use, float) override {
    if (!tracked(id) || next_use == kUnknownUse || next_use == kNeverUsed) return;
    Entry& entry = entries_[id];
    if (entry.ended) return;
    times_.End(rows_[entry.row].life_class, Unwrap(entry.tick), now_);
    entry.ended = 1;
  }

 private:
  using List = IdList<Entry>;
  // The lists of one class and band; row r has lists r * kLevels and on.
  struct Row {
    int16_t life_class, band;
  };
  static constexpr int kMostUses = 63;

  bool tracked(PolicyId id) {
    const Entry* entry = entries_.Find(id);
    return entry != nullptr && entry->placed();
  }

  static int ClassOf(int kind, int uses, bool parent) {
    if (kind == 0 && uses == 0 && !parent) return kUseClasses;
    const int of_uses = uses < 4 ? uses : std::bit_width(static_cast<unsigned>(uses)) + 1;
    return kind * kKindClasses + std::min(of_uses, kUseClasses - 1);
  }

  // The time of a tick of the past.
  uint64_t Unwrap(uint32_t tick) const { return now_ - (static_cast<uint32_t>(now_) - tick); }

  // An access begins.
  void Step() {
    ++now_;
    if (now_ >= next_rank_) Rank();
    MoveAged();
    for (uint32_t n = 1 + kAsideShare * asides_ / (tracked_ + 1); n > 0 && !aside_.empty(); --n) {
      TakeBack(aside_.oldest());
    }
  }

  // Loss per byte, in octaves. What is unknown is taken to be usual.
  int BandOf(uint64_t bytes, uint32_t cost_us) {
    if (cost_us == 0 || bytes == 0) {
      return static_cast<int>(std::lround(usual_band_));
    }
    const double loss = 1024.0 * cost_us / static_cast<double>(bytes);
    const double band = std::clamp(kNeutralBand + std::log2(loss), 0.0, kBands - 1.0);
    usual_band_ += (band - usual_band_) / 256;
    return static_cast<int>(band);
  }

  int RowOf(int life_class, int band) {
    int16_t& row = row_of_[life_class * kBands + band];
    if (row >= 0) return row;
    row = static_cast<int16_t>(rows_.size());
    rows_.push_back({static_cast<int16_t>(life_class), static_cast<int16_t>(band)});
    lists_.resize(rows_.size() * kLevels, List(&entries_));
    due_.resize(lists_.size(), 0);
    Rank();
    return row;
  }

  void Append(PolicyId id, int row, int level) {
    Entry& entry = entries_[id];
    entry.row = static_cast<uint16_t>(row);
    entry.level = static_cast<uint8_t>(level);
    const int list = row * kLevels + level;
    lists_[list].Append(id);
    due_[list] = std::min(due_[list], Unwrap(entry.tick) + LevelEnd(level));
    occupied_[place_[list] / 64] |= uint64_t{1} << place_[list] % 64;
  }

  void Remove(PolicyId id) {
    const Entry& entry = entries_[id];
    if (entry.level == kAside) {
      aside_.Remove(id);
      --asides_;
      return;
    }
    const int list = entry.row * kLevels + entry.level;
    lists_[list].Remove(id);
    if (lists_[list].empty()) occupied_[place_[list] / 64] &= ~(uint64_t{1} << place_[list] % 64);
  }

  PolicyId Leave(PolicyId id) {
    Remove(id);
    Entry& entry = entries_[id];
    if (entry.before != kNoPolicyId) {  // it was what kept that one, most likely
      const Entry* before = entries_.Find(entry.before);
      if (before != nullptr && before->placed() && before->level == kAside) TakeBack(entry.before);
    }
    past_.Reserve(std::max(kLeastPast, kPastPerObject * tracked_));
    past_.Add(entry.tag, {entry.tick, Record::Of(entry)}, static_cast<uint32_t>(now_));
    entry.parent = 0;
    --tracked_;
    return id;
  }

  // A refused candidate is not asked again until what follows it in its prefix has left, or for
  // about a 32nd as many accesses as there are objects: the least dense are often kept by denser
  // ones behind them.
  void SetAside(PolicyId id) {
    Remove(id);
    entries_[id].level = kAside;
    aside_.Append(id);
    ++asides_;
  }

  void TakeBack(PolicyId id) {
    Remove(id);
    const Entry& entry = entries_[id];
    const int level = ReuseTimes::LevelOf(now_ - Unwrap(entry.tick));
    Append(id, entry.row, std::max(level, young_level_));
  }

  // Something is stored behind the id, which may be tracked only after it. If the id is young, both
  // are of one request, and it never was an end; otherwise its next use tells.
  void HasChild(PolicyId id) {
    Entry& entry = entries_.At(id);
    if (entry.parent) return;
    entry.parent = 1;
    if (!entry.placed() || entry.level > young_level_) return;
    const Row row = rows_[entry.row];
    const int life_class = ClassOf(row.life_class / kKindClasses, entry.uses, true);
    if (life_class == row.life_class) return;
    if (!entry.ended) times_.Move(row.life_class, life_class, Unwrap(entry.tick));
    Remove(id);
    Append(id, RowOf(life_class, row.band), young_level_);
  }

  // Goes through the lists for objects that are too old for them, some of the way in each access.
  void MoveAged() {
    if (cursor_ == kNowhere) {
      if (now_ < next_round_) return;
      next_round_ = now_ + tracked_ / kRounds;
      cursor_ = 0;
    }
    for (int steps = 0; steps < kStepsAnAccess; ++steps) {
      cursor_ = NextOccupied(cursor_);
      if (cursor_ == kNowhere) return;
      const int list = static_cast<int>(order_[cursor_]);
      if (due_[list] > now_) {
        ++cursor_;
        continue;
      }
      const PolicyId id = lists_[list].oldest();
      const uint64_t tick = Unwrap(entries_[id].tick);
      due_[list] = tick + LevelEnd(list % kLevels);
      if (due_[list] > now_) {
        ++cursor_;
        continue;
      }
      due_[list] = 0;  // until the next one has been looked at
      Remove(id);
      Append(id, list / kLevels, ReuseTimes::LevelOf(now_ - tick));
    }
  }

  // The age at which an object is too old for the level; of the last one never.
  uint64_t LevelEnd(int level) const {
    if (level == kLevels - 1) return uint64_t{1} << 62;
    return ReuseTimes::LevelStart(std::max(level, young_level_) + 1);
  }

  static constexpr size_t kNowhere = ~size_t{0};

  // The first occupied place at or after `from`.
  size_t NextOccupied(size_t from) const {
    for (size_t word = from / 64; word < occupied_.size(); ++word) {
      const uint64_t bits =
          word == from / 64 ? occupied_[word] & (~uint64_t{0} << from % 64) : occupied_[word];
      if (bits != 0) return word * 64 + std::countr_zero(bits);
    }
    return kNowhere;
  }

  // Learns: puts the lists in order of density, of equal ones the older level first.
  void Rank() {
    times_.SetScale(tracked_);
    const int young =
        ReuseTimes::LevelOf(tracked_ / (tracked_ < kMany ? kYoungShare : kYoungShareOfMany));
    if (young != young_level_) std::fill(due_.begin(), due_.end(), 0);
    young_level_ = young;
    densities_.resize(size_t{kKinds} * kKindClasses * kLevels);
    times_.Densities(now_, absl::MakeSpan(densities_));
    const size_t lists = lists_.size();
    std::vector<float> value(lists);
    order_.resize(lists);
    for (size_t list = 0; list < lists; ++list) {
      const Row& row = rows_[list / kLevels];
      value[list] = std::ldexp(densities_[row.life_class * kLevels + list % kLevels], row.band);
      order_[list] = static_cast<uint32_t>(list);
    }
    std::sort(order_.begin(), order_.end(), [&value](uint32_t a, uint32_t b) {
      if (value[a] != value[b]) return value[a] < value[b];
      return a % kLevels != b % kLevels ? a % kLevels > b % kLevels : a < b;
    });
    place_.resize(lists);
    occupied_.assign((lists + 63) / 64, 0);
    for (size_t place = 0; place < lists; ++place) {
      place_[order_[place]] = static_cast<uint32_t>(place);
      if (!lists_[order_[place]].empty()) occupied_[place / 64] |= uint64_t{1} << place % 64;
    }
    next_rank_ = now_ + std::clamp<uint64_t>(tracked_ / 8, kLeastRank, kMostRank);
  }
  // Accesses between two orders: an eighth of the objects, but the cost (tens of microseconds)
  // must stay small beside that of the accesses, and what is learned fresh.
  static constexpr uint64_t kLeastRank = 128, kMostRank = 65536;

  IdTable<Entry> entries_;
  List aside_{&entries_};
  uint32_t asides_ = 0;
  PastUses past_;
  ReuseTimes times_{kKinds * kKindClasses};
  uint64_t now_ = 0, next_rank_ = 0;
  uint32_t tracked_ = 0;
  int young_level_ = 0;
  double usual_band_ = kNeutralBand;

  std::vector<Row> rows_;
  std::vector<int16_t> row_of_ = std::vector<int16_t>(size_t{kKinds} * kKindClasses * kBands, -1);
  std::vector<List> lists_;
  std::vector<uint64_t> due_;  // of each list: before then nothing in it is too old for it
  std::vector<float> densities_;
  std::vector<uint32_t> order_, place_;  // lists by density, and where each is among them
  std::vector<uint64_t> occupied_;       // a bit for each place
  size_t cursor_ = kNowhere;             // the place of the list to go on with; between rounds none
  uint64_t next_round_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewHitDensityPolicy() {
  return std::make_unique<HitDensityPolicy>();
}

}  // namespace terrace
