// The profile of a model that nobody calibrated: made of one chunk of its KV, without the model.
// Deterministic: every machine makes the same bytes of the same chunk. Any thread; blocking, tens
// of milliseconds a head.
//
// What is not known is guessed from what training does to weights. Scaling a pair of query channels
// up and the keys' down changes nothing, and weight decay keeps both alike: so an error in a
// channel of K weighs as the channel's own energy does, and in V, less so, too. Tokens whose key
// points where all keys point are attended to least (KeyDiff, arXiv:2504.15364). The transform is
// the KLT of each head in the space of these weights. Its operating points are those of one small
// model: on another the loss is a guess.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/kv_shape.h"
#include "kernels/rope.h"

namespace terrace::codec {

// How keys were rotated. Not known: kNone, and they stay as they are.
struct DefaultRope {
  kernels::RopePairing pairing = kernels::RopePairing::kNone;
  uint32_t rotary_dim = 0;  // even; 0 exactly without pairing
  double theta = 0;         // pair i turns by theta^(-2 i / rotary_dim) radians a position
};

inline constexpr uint32_t kDefaultProfileSkips = 4;    // tokens at the chunk's start
inline constexpr uint32_t kDefaultProfileTokens = 64;  // that it takes after them, at the least

// sections[s]: the bytes of section s. InvalidArgument when the dtype has no floats, there are too
// few tokens or too few of finite values, heads times dim is above kMaxChannels, or `rope` or
// `model_id` is out of range.
absl::StatusOr<std::vector<uint8_t>> MakeDefaultProfile(const KvShape& shape,
                                                        const DefaultRope& rope,
                                                        std::span<const uint8_t* const> sections,
                                                        std::string_view model_id);

}  // namespace terrace::codec
