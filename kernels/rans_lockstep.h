// What the vector implementations of rans.h share: streams are coded several in lockstep, which
// hides the latency of one stream's steps behind the others'. Not for use elsewhere.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kernels/rans.h"

namespace terrace::kernels::rans {

constexpr uint16_t kFirstState = 256;
constexpr size_t kTogether = 8;  // streams

// For machines known to have the instructions; rans.cc checks.
bool EncodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources);
bool EncodeAvx512(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources);
void ReverseAvx2(uint8_t* data, size_t bytes);

inline bool PossibleShape(const RansShape& shape) {
  return shape.rounds > 0 && shape.rounds_per_channel > 0 && shape.tail_lanes > 0 &&
         shape.tail_lanes <= kRansLanes;
}

// The lanes that are ever active, whose states a stream holds.
inline size_t StoredLanes(const RansShape& shape) {
  return shape.rounds_per_channel == 1 ? shape.tail_lanes : kRansLanes;
}

inline size_t ActiveLanes(const RansShape& shape, size_t round) {
  return (round + 1) % shape.rounds_per_channel == 0 ? shape.tail_lanes : kRansLanes;
}

inline bool PossibleSchedule(const uint8_t* schedule, size_t rounds) {
  static_assert(kRansTables == 64);  // so that one mask tells
  uint64_t seen = 0;
  for (; rounds >= 8; schedule += 8, rounds -= 8) {
    uint64_t ids;
    std::memcpy(&ids, schedule, 8);
    seen |= ids;
  }
  for (; rounds > 0; --rounds) seen |= *schedule++;
  return (seen & 0xc0c0c0c0c0c0c0c0) == 0;
}

// The bytes of one stream. A round may load 32 bytes from `at`, needed or not: near the end the
// bytes are moved into a buffer that goes on with zeros.
class Reader {
 public:
  void Open(const uint8_t* data, size_t size) {
    at = data;
    end_ = data + size;
    Advanced();
  }
  // How many rounds may run before Advanced must be called: at least kMargin.
  size_t SafeRounds() const {
    return moved_ ? kMargin : static_cast<size_t>(end_ - at) / kRansLanes;
  }
  void Advanced() {
    if (moved_) {
      if (at <= end_) return;
      overrun_ = true;
      at = end_;
    } else if (const size_t left = end_ - at; left < sizeof(buffer_) / 2) {
      std::memcpy(buffer_, at, left);
      std::memset(buffer_ + left, 0, sizeof(buffer_) / 2);
      at = buffer_;
      end_ = buffer_ + left;
      moved_ = true;
    }
  }
  bool ReadAll() const { return moved_ && !overrun_ && at == end_; }

  const uint8_t* at = nullptr;

 private:
  static constexpr size_t kMargin = 16;

  const uint8_t* end_ = nullptr;
  bool moved_ = false;
  bool overrun_ = false;
  uint8_t buffer_[2 * kMargin * kRansLanes];
};

// One of the streams that are decoded in lockstep.
struct Lane {
  alignas(64) uint16_t states[kRansLanes];
  const uint8_t* schedule;
  uint8_t* symbols;
  Reader reader;
};

// What they have in common.
struct Lockstep {
  const RansTable* tables;
  size_t rounds_per_channel;
  size_t tail_lanes;
  size_t to_tail;  // rounds before the next one of tail_lanes
};

// Decodes `rounds` rounds of `count` streams, which the readers must be safe for, and moves
// schedules, symbols and readers on.
using DecodeRounds = void (*)(const Lockstep& common, Lane* lanes, size_t count, size_t rounds);
void DecodeRoundsScalar(const Lockstep& common, Lane* lanes, size_t count, size_t rounds);
void DecodeRoundsAvx2(const Lockstep& common, Lane* lanes, size_t count, size_t rounds);
void DecodeRoundsAvx512(const Lockstep& common, Lane* lanes, size_t count, size_t rounds);
DecodeRounds FastestDecodeRounds();  // of this machine

// Whole streams, kTogether at a time.
bool DecodeAll(DecodeRounds decode, const RansTables& bank, const RansShape& shape,
               std::span<RansStream> streams);

// Whether the first states are there, and each is at least 256.
inline bool PossibleStart(const RansShape& shape, const uint8_t* data, size_t size) {
  const size_t lanes = StoredLanes(shape);
  if (size < lanes * 2) return false;
  bool possible = true;
  for (size_t lane = 0; lane < lanes; ++lane) possible &= data[lane * 2 + 1] != 0;
  return possible;
}

inline bool PossibleStream(const RansShape& shape, const RansStream& stream) {
  return PossibleStart(shape, stream.data, stream.size) &&
         PossibleSchedule(stream.schedule, shape.rounds);
}

// What EncodeRounds works on. It goes from the last round to the first and writes the bytes in the
// order it makes them, which is the reverse of that they are read in.
template <size_t kStreams>
struct Encoding {
  const RansTables* bank;
  RansShape shape;
  uint8_t* at[kStreams];
  const uint8_t* schedule[kStreams];
  const uint8_t* symbols[kStreams];
  bool ok[kStreams];                                  // result
  alignas(64) uint16_t states[kStreams][kRansLanes];  // result
};

// EncodeRounds(Encoding*) and Reverse(data, bytes) are the implementation's.
template <size_t kStreams, auto EncodeRounds, auto Reverse>
bool EncodeGroup(const RansTables& bank, const RansShape& shape, RansSource* const* sources) {
  Encoding<kStreams> encoding;
  encoding.bank = &bank;
  encoding.shape = shape;
  const size_t header = StoredLanes(shape) * 2;
  for (size_t k = 0; k < kStreams; ++k) {
    encoding.at[k] = sources[k]->data + header;
    encoding.schedule[k] = sources[k]->schedule;
    encoding.symbols[k] = sources[k]->symbols;
  }
  EncodeRounds(&encoding);
  bool all = true;
  for (size_t k = 0; k < kStreams; ++k) {
    all &= encoding.ok[k];
    if (!encoding.ok[k]) continue;
    uint8_t* data = sources[k]->data;
    std::memcpy(data, encoding.states[k], header);
    Reverse(data + header, encoding.at[k] - data - header);
    sources[k]->size = encoding.at[k] - data;
  }
  return all;
}

template <auto EncodeGroup4, auto EncodeGroup2, auto EncodeGroup1>
bool EncodeAll(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources) {
  bool all = true;
  RansSource* group[4];
  size_t grouped = 0;
  for (RansSource& source : sources) {
    source.size = 0;
    if (!PossibleShape(shape) || !PossibleSchedule(source.schedule, shape.rounds)) {
      all = false;
      continue;
    }
    group[grouped++] = &source;
    if (grouped == 4) {
      all &= EncodeGroup4(bank, shape, group);
      grouped = 0;
    }
  }
  if ((grouped & 2) != 0) all &= EncodeGroup2(bank, shape, group);
  if ((grouped & 1) != 0) all &= EncodeGroup1(bank, shape, group + (grouped & 2));
  return all;
}

}  // namespace terrace::kernels::rans
