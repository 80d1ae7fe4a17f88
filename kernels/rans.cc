#include "kernels/rans.h"

#include <algorithm>
#include <cstring>

#include "kernels/rans_avx512.h"

namespace terrace::kernels {
namespace {

constexpr uint32_t kLowest = 256;  // of a state

class ScalarDecoder {
 public:
  // False when the states are not all there.
  bool Start(const RansShape& shape, const uint8_t* data, size_t size) {
    next_ = data + 2 * shape.States();
    end_ = data + size;
    if (size < 2 * shape.States()) return false;
    std::fill(state_, state_ + kRansLanes, kLowest);
    for (uint32_t lane = 0; lane < shape.States(); ++lane) {
      state_[lane] = data[2 * lane] | data[2 * lane + 1] << 8;
    }
    return true;
  }
  // False when the bytes run out.
  bool Round(const RansTables& tables, uint32_t table, uint32_t lanes, uint8_t* symbols) {
    std::memset(symbols, 0, kRansLanes);
    for (uint32_t lane = 0; lane < lanes; ++lane) {
      uint32_t x = state_[lane];
      const uint32_t slot = x & 255, symbol = tables.symbol_of_slot[table][slot];
      x = tables.frequency[table][symbol] * (x >> 8) + slot - tables.start[table][symbol];
      if (x < kLowest) {
        if (next_ == end_) return false;
        x = x << 8 | *next_++;
      }
      state_[lane] = x;
      symbols[lane] = symbol;
    }
    return true;
  }
  bool AtEnd() const {
    return next_ == end_ && std::all_of(state_, state_ + kRansLanes,
                                        [](uint32_t state) { return state == kLowest; });
  }

 private:
  uint32_t state_[kRansLanes];
  const uint8_t* next_ = nullptr;
  const uint8_t* end_ = nullptr;
};

void DecodeOne(const RansTables& tables, const RansShape& shape, RansStream* stream) {
  ScalarDecoder decoder;
  stream->ok = decoder.Start(shape, stream->data, stream->size);
  for (uint32_t round = 0; round < shape.rounds; ++round) {
    uint8_t* symbols = stream->symbols + kRansLanes * round;
    if (!stream->ok) {
      std::memset(symbols, 0, kRansLanes);
    } else {
      stream->ok = decoder.Round(tables, stream->schedule[round], shape.Lanes(round), symbols);
    }
  }
  stream->ok = stream->ok && decoder.AtEnd();
}

}  // namespace

bool RansBuildTable(const uint16_t frequencies[kRansSymbols], uint32_t id, RansTables* tables) {
  uint32_t sum = 0;
  for (uint32_t s = 0; s < kRansSymbols; ++s) sum += frequencies[s];
  if (sum != 256) return false;
  uint32_t start = 0;
  for (uint32_t s = 0; s < kRansSymbols; ++s) {
    tables->frequency[id][s] = frequencies[s];
    tables->start[id][s] = start;
    tables->reciprocal[id][s] = frequencies[s] == 0 ? 0 : 65535 / frequencies[s];
    std::memset(tables->symbol_of_slot[id] + start, s, frequencies[s]);
    start += frequencies[s];
  }
  return true;
}

size_t RansEncodeScalar(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                        const uint8_t* symbols, uint8_t* out) {
  uint32_t state[kRansLanes];
  std::fill(state, state + kRansLanes, kLowest);
  uint8_t* const end = out + RansBound(shape);
  uint8_t* next = end;  // what the decoder reads first is written last
  for (uint32_t round = shape.rounds; round-- > 0;) {
    const uint32_t table = schedule[round];
    for (uint32_t lane = shape.Lanes(round); lane-- > 0;) {
      const uint32_t symbol = symbols[kRansLanes * round + lane];
      const uint32_t frequency = tables.frequency[table][symbol];
      if (frequency == 0) return 0;
      uint32_t x = state[lane];
      if (x >= frequency << 8) {
        *--next = x & 255;
        x >>= 8;
      }
      state[lane] = (x / frequency << 8) + x % frequency + tables.start[table][symbol];
    }
  }
  for (uint32_t lane = shape.States(); lane-- > 0;) {
    *--next = state[lane] >> 8;
    *--next = state[lane] & 255;
  }
  std::memmove(out, next, end - next);
  return end - next;
}

void RansDecodeScalar(const RansTables& tables, const RansShape& shape, RansStream* streams,
                      size_t count) {
  for (size_t i = 0; i < count; ++i) DecodeOne(tables, shape, &streams[i]);
}

bool RansPeek(const RansTables& tables, const RansShape& shape, const uint8_t* data, size_t size,
              const uint8_t* schedule, uint32_t rounds, uint8_t* symbols) {
  ScalarDecoder decoder;
  if (!decoder.Start(shape, data, size)) return false;
  for (uint32_t round = 0; round < rounds; ++round) {
    if (!decoder.Round(tables, schedule[round], shape.Lanes(round), symbols + kRansLanes * round)) {
      return false;
    }
  }
  return true;
}

size_t RansEncode(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                  const uint8_t* symbols, uint8_t* out) {
  return RansAvx512Supported() ? RansEncodeAvx512(tables, shape, schedule, symbols, out)
                               : RansEncodeScalar(tables, shape, schedule, symbols, out);
}

void RansDecode(const RansTables& tables, const RansShape& shape, RansStream* streams,
                size_t count) {
  return RansAvx512Supported() ? RansDecodeAvx512(tables, shape, streams, count)
                               : RansDecodeScalar(tables, shape, streams, count);
}

const char* RansImplementation() { return RansAvx512Supported() ? "avx512-vbmi2" : "scalar"; }

}  // namespace terrace::kernels
