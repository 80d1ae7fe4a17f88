// Which way of encoding an object is expected to bring it back soonest: a pure decision over what
// was measured. CacheGen (Liu et al., arXiv:2310.07240) adapts its level to the bandwidth; here the
// codec and its form are chosen too, and exact ones are preferred wherever they cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace terrace {

// One way of encoding, as measured on objects of a layout.
struct CodecCost {
  bool lossless = true;
  double ratio = 1;               // encoded length / length
  double decode_bytes_per_s = 0;  // of decoded bytes, on one thread; 0: nothing to decode
};

// What an object would come back through.
struct LinkState {
  double read_bytes_per_s = 0;  // above 0
  uint64_t queued_bytes = 0;    // asked for before it
  uint32_t threads = 1;         // that decode
};

// Until the last layer of an object of `bytes` and `layers` is there: layers are read in order, and
// decoded while later ones are read.
double ExpectedSeconds(const CodecCost& cost, const LinkState& link, uint64_t bytes,
                       uint32_t layers);

// Index of the best, of one or more. A lossless one is taken when it is no slower than the best by
// more than a fiftieth, and of equals the smaller.
size_t ChooseCodec(std::span<const CodecCost> costs, const LinkState& link, uint64_t bytes,
                   uint32_t layers);

}  // namespace terrace
