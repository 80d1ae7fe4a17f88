#include "kernels/rans_decoder.h"

#include <algorithm>
#include <cstring>

namespace terrace::kernels {

RansDecoder::RansDecoder(const RansTables& bank, const RansShape& shape, rans::DecodeRounds decode)
    : decode_(decode),
      shape_(shape),
      common_{bank.tables, shape.rounds_per_channel, shape.tail_lanes,
              shape.rounds_per_channel - 1},
      rounds_left_(shape.rounds) {}

bool RansDecoder::Add(const uint8_t* data, size_t size) {
  if (streams_ == kTogether || !rans::PossibleShape(shape_) ||
      !rans::PossibleStart(shape_, data, size)) {
    return false;
  }
  rans::Lane& lane = lanes_[streams_++];
  const size_t header = rans::StoredLanes(shape_) * 2;
  std::fill_n(lane.states, kRansLanes, rans::kFirstState);
  std::memcpy(lane.states, data, header);
  lane.reader.Open(data + header, size - header);
  return true;
}

bool RansDecoder::Decode(size_t rounds, const uint8_t* const* schedules, uint8_t* const* symbols) {
  if (rounds > rounds_left_) return false;
  for (size_t k = 0; k < streams_; ++k) {
    if (!rans::PossibleSchedule(schedules[k], rounds)) return false;
    lanes_[k].schedule = schedules[k];
    lanes_[k].symbols = symbols[k];
  }
  rounds_left_ -= rounds;
  while (rounds > 0 && streams_ > 0) {
    size_t some = rounds;
    for (size_t k = 0; k < streams_; ++k) some = std::min(some, lanes_[k].reader.SafeRounds());
    decode_(common_, lanes_, streams_, some);
    for (size_t k = 0; k < streams_; ++k) lanes_[k].reader.Advanced();
    const size_t period = common_.rounds_per_channel;
    common_.to_tail = (common_.to_tail + period - some % period) % period;
    rounds -= some;
  }
  return true;
}

bool RansDecoder::Ended(size_t k) const {
  uint32_t differs = 0;
  for (uint16_t state : lanes_[k].states) differs |= state ^ rans::kFirstState;
  return rounds_left_ == 0 && lanes_[k].reader.ReadAll() && differs == 0;
}

bool rans::DecodeAll(DecodeRounds decode, const RansTables& bank, const RansShape& shape,
                     std::span<RansStream> streams) {
  bool all = true;
  while (!streams.empty()) {
    RansDecoder decoder(bank, shape, decode);
    RansStream* added[rans::kTogether];
    const uint8_t* schedules[rans::kTogether];
    uint8_t* symbols[rans::kTogether];
    size_t count = 0;
    for (; !streams.empty() && count < rans::kTogether; streams = streams.subspan(1)) {
      RansStream& stream = streams.front();
      stream.ok = false;
      if (!PossibleSchedule(stream.schedule, shape.rounds) ||
          !decoder.Add(stream.data, stream.size)) {
        all = false;
        continue;
      }
      schedules[count] = stream.schedule;
      symbols[count] = stream.symbols;
      added[count++] = &stream;
    }
    decoder.Decode(shape.rounds, schedules, symbols);
    for (size_t k = 0; k < count; ++k) all &= added[k]->ok = decoder.Ended(k);
  }
  return all;
}

}  // namespace terrace::kernels
