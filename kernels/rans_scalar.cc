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

bool DecodeOne(const RansTables& bank, const RansShape& shape, const RansStream* stream) {
  uint32_t states[kRansLanes];
  std::fill_n(states, kRansLanes, rans::kFirstState);
  for (size_t lane = 0; lane < rans::StoredLanes(shape); ++lane) {
    states[lane] = stream->data[2 * lane] | stream->data[2 * lane + 1] << 8;
  }
  const uint8_t* from = stream->data + 2 * rans::StoredLanes(shape);
  const uint8_t* const end = stream->data + stream->size;
  for (size_t round = 0; round < shape.rounds; ++round) {
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
  return from == end && std::all_of(states, states + kRansLanes,
                                    [](uint32_t state) { return state == rans::kFirstState; });
}

}  // namespace

void rans::DecodeRoundsScalar(const Lockstep& common, Lane* lanes, size_t count, size_t rounds) {
  for (Lane* lane = lanes; lane != lanes + count; ++lane) {
    size_t to_tail = common.to_tail;
    for (size_t round = 0; round < rounds; ++round, lane->symbols += kRansLanes) {
      const RansTable& table = common.tables[*lane->schedule++];
      const size_t active = to_tail == 0 ? common.tail_lanes : kRansLanes;
      to_tail = to_tail == 0 ? common.rounds_per_channel - 1 : to_tail - 1;
      std::fill(lane->symbols + active, lane->symbols + kRansLanes, 0);
      for (size_t i = 0; i < active; ++i) {
        const uint32_t slot = lane->states[i] & 0xff;
        const uint8_t symbol = table.slot_to_symbol[slot];
        uint32_t x =
            (kRansTotal - table.gap[symbol]) * (lane->states[i] >> 8u) + slot - table.start[symbol];
        if (x < 256) x = x << 8 | *lane->reader.at++;
        lane->states[i] = static_cast<uint16_t>(x);
        lane->symbols[i] = symbol;
      }
    }
  }
}

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
                DecodeOne(bank, shape, &stream);
    all &= stream.ok;
  }
  return all;
}

}  // namespace terrace::kernels
