// Decodes streams of kernels/rans.h in lockstep, some rounds at a time, so that their symbols are
// used while they are in the cache. Allocates nothing. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rans.h"
#include "kernels/rans_lockstep.h"

namespace terrace::kernels {

class RansDecoder {
 public:
  static constexpr size_t kTogether = rans::kTogether;

  // Streams of one shape. The bank must outlive it.
  RansDecoder(const RansTables& bank, const RansShape& shape,
              rans::DecodeRounds decode = rans::FastestDecodeRounds());
  RansDecoder(const RansDecoder&) = delete;
  RansDecoder& operator=(const RansDecoder&) = delete;

  // Adds a stream, whose bytes may be anything and must stay. False, and nothing added, when it
  // cannot be one. At most kTogether; not after Decode.
  bool Add(const uint8_t* data, size_t size);
  // The next rounds of every stream: those of the k-th by the tables schedules[k] to symbols[k]
  // (rounds * 32). False, and nothing done, when a schedule names no table or fewer are left.
  bool Decode(size_t rounds, const uint8_t* const* schedules, uint8_t* const* symbols);
  // After the last round: whether the k-th stream ended as one does.
  bool Ended(size_t k) const;

 private:
  const rans::DecodeRounds decode_;
  const RansShape shape_;
  rans::Lockstep common_;
  size_t rounds_left_;
  size_t streams_ = 0;
  rans::Lane lanes_[kTogether];
};

}  // namespace terrace::kernels
