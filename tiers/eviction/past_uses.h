// When and how often objects that left were used, so that one that returns is not taken for new.
// A set-associative table: a line of 64 bytes holds seven objects, a new one takes the place of the
// least recently used in its line. The table grows by a line at a time (linear hashing, Litwin,
// VLDB 1980), so that no call pays for a growth. 9.2 bytes an object.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "tiers/eviction/id_table.h"

namespace terrace {

class PastUses {
 public:
  struct Past {
    uint32_t tick;   // of its last use
    uint8_t record;  // the policy's own, of its past
  };

  // 32 bits of ObjectKey::Head64, mixed, for a replay may use small numbers. 0 for an object
  // without history (head 0) and no other. With millions remembered, one new object in a thousand
  // is taken for one of them.
  static uint32_t TagOf(uint64_t key_head) {
    if (key_head == 0) return 0;
    uint64_t x = (key_head ^ (key_head >> 32)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    const auto tag = static_cast<uint32_t>(x >> 32);
    return tag != 0 ? tag : 1;
  }

  // Room for so many objects, reached by a line a call of Add. It never shrinks.
  void Reserve(uint32_t objects) { wanted_ = std::max(wanted_, objects / kWays + 1); }

  // Ignored without a tag. `now` is a tick, too; ticks may wrap.
  void Add(uint32_t tag, const Past& past, uint32_t now) {
    if (tag == 0) return;
    if (size_ < wanted_) Grow(now);
    Put(lines_.At(LineOf(tag)), tag, past, now);
  }

  // And it is forgotten. nullopt when it is not remembered.
  std::optional<Past> Take(uint32_t tag) {
    if (tag == 0 || size_ == 0) return std::nullopt;
    Line& line = lines_[LineOf(tag)];
    for (int way = 0; way < kWays; ++way) {
      if (line.tag[way] != tag) continue;
      line.tag[way] = 0;
      return Past{line.tick[way], line.record[way]};
    }
    return std::nullopt;
  }

 private:
  static constexpr int kWays = 7;
  struct alignas(64) Line {
    std::array<uint32_t, kWays> tag{}, tick{};  // tag 0: free
    std::array<uint8_t, kWays> record{};
  };

  uint32_t LineOf(uint32_t tag) const {
    const uint32_t line = tag & (2 * round_ - 1);
    return line < size_ ? line : tag & (round_ - 1);
  }

  static void Put(Line& line, uint32_t tag, const Past& past, uint32_t now) {
    int place = 0;
    for (int way = 0; way < kWays; ++way) {
      if (line.tag[way] == 0) {
        place = way;
        break;
      }
      if (now - line.tick[way] > now - line.tick[place]) place = way;
    }
    line.tag[place] = tag;
    line.tick[place] = past.tick;
    line.record[place] = past.record;
  }

  // Splits the next line in turn: some of its objects go to the new one.
  void Grow(uint32_t now) {
    const uint32_t added = size_++;
    Line& to = lines_.At(added);
    if (added == 0) return;
    if (added == 2 * round_) round_ *= 2;
    Line& from = lines_[added - round_];
    for (int way = 0; way < kWays; ++way) {
      const uint32_t tag = from.tag[way];
      if (tag == 0 || LineOf(tag) != added) continue;
      Put(to, tag, {from.tick[way], from.record[way]}, now);
      from.tag[way] = 0;
    }
  }

  IdTable<Line> lines_;
  uint32_t size_ = 0, wanted_ = 1;
  uint32_t round_ = 1;  // a power of two: size_ is in [round_, 2 round_]
};

}  // namespace terrace
