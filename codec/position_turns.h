// What the tokens of a chunk turn by. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/kv_shape.h"
#include "kernels/rope.h"

namespace terrace::codec {

class PositionTurns {
 public:
  // Frequencies of the pairs, as in a profile.
  PositionTurns(std::span<const uint64_t> frequencies, const KvShape& shape)
      : pairs_(frequencies.size()), cosines_(shape.tokens * pairs_), sines_(cosines_.size()) {
    kernels::FillTurns(frequencies.data(), pairs_, shape.position, shape.tokens, cosines_.data(),
                       sines_.data());
  }
  // Of the chunk's token and those after it.
  kernels::TokenTurns At(uint32_t token) const {
    return {cosines_.data() + token * pairs_, sines_.data() + token * pairs_};
  }

 private:
  size_t pairs_;
  std::vector<float> cosines_, sines_;  // [token][pair]
};

}  // namespace terrace::codec
