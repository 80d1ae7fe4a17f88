// Entropy coding of small symbols: static-table rANS (Duda 2013, arXiv 1311.2540) of 32 interleaved
// lanes (Giesen 2014, arXiv 1402.3392). Run-time dispatch on CPU features with a scalar reference
// that is always built and tested against; all implementations write the same bytes and read the
// same symbols. Raw pointers in, results out; allocates nothing. Any thread.
//
// A stream codes rounds of up to 32 symbols, one a lane, of the alphabet 0..31; lanes 0..n-1 of a
// round are active. Each round uses one table of a bank: frequencies that sum to 256. A symbol of
// frequency 0 cannot be coded, one of frequency 256 costs nothing.
//
// A lane's state x lies in [2^8, 2^16). To decode a symbol: slot = x & 255; s = the symbol with
// start[s] <= slot < start[s] + frequency[s]; x = frequency[s] * (x >> 8) + slot - start[s]; if
// then x < 256, x = x << 8 | next byte, the lanes of a round in ascending order. The stream is
// the lanes' first states, little-endian u16, then the bytes in the order they are read. States end
// at 256 with every byte read; a stream that does not is damaged. That catches most damage, not
// all: checksum what must not change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace terrace::kernels {

constexpr size_t kRansLanes = 32;
constexpr size_t kRansSymbols = 32;
constexpr size_t kRansTables = 64;
constexpr uint32_t kRansTotal = 256;  // what the frequencies of a table sum to

// One table, in the forms the implementations look things up in.
struct RansTable {
  alignas(64) uint8_t slot_to_symbol[kRansTotal];
  uint16_t gap[kRansSymbols];  // 256 - frequency
  uint16_t start[kRansSymbols];
  uint16_t reciprocal[kRansSymbols];  // 65536 / frequency, at most 65535; 0 of frequency 0
  // For byte shuffles. A search tree over the starts, node i's children being 2i and 2i + 1: a slot
  // goes right if slot ^ 0x80 is greater (signed). A slot 0 always goes left, to leaf 0.
  uint8_t tree[kRansSymbols];
  uint8_t leaf_start[2][kRansSymbols / 2];  // of even symbols, of odd ones
  uint8_t leaf_gap[2][kRansSymbols / 2];
  uint8_t gap8[kRansSymbols];
  uint8_t start8[kRansSymbols];
  uint8_t reciprocal_low[kRansSymbols];
  uint8_t reciprocal_high[kRansSymbols];
  uint8_t first_symbol;  // the lowest of a frequency above 0
};

// A bank. Tables that nobody built code only the symbol 0, at no cost. 44 KiB.
struct RansTables {
  RansTables();
  RansTable tables[kRansTables];
};

// Makes table `id` (below kRansTables) of these frequencies. False, and the table as it was, unless
// they sum to 256.
bool RansBuildTable(RansTables* bank, size_t id, const uint16_t frequency[kRansSymbols]);

// Rounds come in channels of `rounds_per_channel` (1 or more); the last of each has `tail_lanes`
// active lanes (1 to 32), the others 32. `rounds` is at least 1.
struct RansShape {
  size_t rounds = 0;
  size_t rounds_per_channel = 1;
  size_t tail_lanes = kRansLanes;
};

struct RansSource {
  const uint8_t* symbols = nullptr;   // rounds * 32; those of inactive lanes are ignored
  const uint8_t* schedule = nullptr;  // the table of each round
  uint8_t* data = nullptr;            // room for RansBound(rounds), all of which may be written
  size_t size = 0;                    // result: the length of the stream; 0 if it cannot be coded
};

struct RansStream {
  const uint8_t* data = nullptr;  // may be anything: nothing outside is read
  size_t size = 0;
  const uint8_t* schedule = nullptr;
  uint8_t* symbols = nullptr;  // rounds * 32, 0 for inactive lanes. If not ok anything below 32,
                               // or not written at all
  bool ok = false;             // result
};

// Room for any stream of so many rounds.
size_t RansBound(size_t rounds);

// Encode each source. False if any cannot be coded: a symbol has frequency 0 in the table of its
// round or is not in the alphabet, a schedule names no table, or the shape is impossible. The
// sources share nothing but bank and shape; coding four or more at a time is fastest.
bool RansEncode(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources);
// Decodes each stream. False if any is damaged, its schedule names no table, or the shape is
// impossible; `ok` says which.
bool RansDecode(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams);

// Scalar references.
bool RansEncodeScalar(const RansTables& bank, const RansShape& shape,
                      std::span<RansSource> sources);
bool RansDecodeScalar(const RansTables& bank, const RansShape& shape,
                      std::span<RansStream> streams);

// By instruction set, so that tests cover them all. Each is the next lesser one where the machine
// lacks it.
bool RansEncodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansSource> sources);
bool RansDecodeAvx2(const RansTables& bank, const RansShape& shape, std::span<RansStream> streams);
bool RansEncodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansSource> sources);
bool RansDecodeAvx512(const RansTables& bank, const RansShape& shape,
                      std::span<RansStream> streams);

// "avx512-vbmi2", "avx2" or "scalar": what dispatch picked on this machine.
const char* RansImplementation();

}  // namespace terrace::kernels
