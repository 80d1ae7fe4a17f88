#include <algorithm>

#include "kernels/rans_lockstep.h"

namespace terrace::kernels {

namespace {

bool EncodeOne(const RansTables& bank, const RansShape& shape, RansSource* source) {
  uint32_t states[kRansLanes];
  std::fill_n(states, kRansLanes, rans::kFirstState);
  uint8_t* const bytes = source->data + 2 * rans::StoredLanes(shape);
  uint8_t* to = bytes;
  for (size_t round = shape.rounds; round-- > 0;) {
    const RansTable& table = bank.tables[source->schedule[round]];
    for (size_t lane = rans::ActiveLanes(shape, round); lane-- > 0;) {
      const uint8_t symbol = source->symbols[round * kRansLanes + lane];
      if (symbol >= kRansSymbols) return false;
      const uint32_t frequency = kRansTotal - table.gap[symbol];
      if (frequency == 0) return false;
      uint32_t x = states[lane];
      if (x >= frequency << 8) {
        *to++ = static_cast<uint8_t>(x);
        x >>= 8;
      }
      states[lane] = (x / frequency << 8) + x % frequency + table.start[symbol];
    }
  }
  std::reverse(bytes, to);
  for (size_t lane = 0; lane < rans::StoredLanes(shape); ++lane) {
    source->data[2 * lane] = static_cast<uint8_t>(states[lane]);
    source->data[2 * lane + 1] = static_cast<uint8_t>(states[lane] >> 8);
  }
  source->size = to - source->data;
  return true;
}

// The first `rounds` rounds; of a whole stream its end too.
bool DecodeRounds(const RansTables& bank, const RansShape& shape, size_t rounds,
                  const RansStream* stream) {
  uint32_t states[kRansLanes];
  std::fill_n(states, kRansLanes, rans::kFirstState);
  for (size_t lane = 0; lane < rans::StoredLanes(shape); ++lane) {
    states[lane] = stream->data[2 * lane] | stream->data[2 * lane + 1] << 8;
  }
  const uint8_t* from = stream->data + 2 * rans::StoredLanes(shape);
  const uint8_t* const end = stream->data + stream->size;
  for (size_t round = 0; round < rounds; ++round) {
    const RansTable& table = bank.tables[stream->schedule[round]];
    uint8_t* symbols = stream->symbols + round * kRansLanes;
    const size_t active = rans::ActiveLanes(shape, round);
    std::fill(symbols + active, symbols + kRansLanes, 0);
    for (size_t lane = 0; lane < active; ++lane) {
      const uint32_t slot = states[lane] & 0xff;
      const uint8_t symbol = table.slot_to_symbol[slot];
      const uint32_t frequency = kRansTotal - table.gap[symbol];
      uint32_t x = frequency * (states[lane] >> 8) + slot - table.start[symbol];
      if (x < 256) {
        if (from == end) return false;
        x = x << 8 | *from++;
      }
      states[lane] = x;
      symbols[lane] = symbol;
    }
  }
  if (rounds < shape.rounds) return true;
  return from == end && std::all_of(states, states + kRansLanes,
                                    [](uint32_t state) { return state == rans::kFirstState; });
}

}  // namespace

bool RansEncodeScalar(const RansTables& bank, const RansShape& shape,
                      std::span<RansSource> sources) {
  bool all = true;
  for (RansSource& source : sources) {
    source.size = 0;
    all &= rans::PossibleShape(shape) && rans::PossibleSchedule(source.schedule, shape.rounds) &&
           EncodeOne(bank, shape, &source);
  }
  return all;
}

bool RansDecodeScalar(const RansTables& bank, const RansShape& shape,
                      std::span<RansStream> streams) {
  bool all = true;
  for (RansStream& stream : streams) {
    stream.ok = rans::PossibleShape(shape) && rans::PossibleStream(shape, stream) &&
                DecodeRounds(bank, shape, shape.rounds, &stream);
    all &= stream.ok;
  }
  return all;
}

bool RansPeek(const RansTables& bank, const RansShape& shape, size_t rounds,
              const RansStream& stream) {
  RansShape head = shape;
  head.rounds = rounds;
  return rounds < shape.rounds && rans::PossibleShape(head) && rans::PossibleStream(head, stream) &&
         DecodeRounds(bank, shape, rounds, &stream);
}

}  // namespace terrace::kernels
