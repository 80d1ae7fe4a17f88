// Interleaved rANS with static tables: 32 lanes of 16 bits, probabilities of 8 bits, a byte at a
// time. Duda, arXiv:1311.2540; lanes as in Giesen, arXiv:1402.3392. The stream is described in
// docs/formats/chunk.md. Run-time dispatch: AVX-512 (VBMI, VBMI2) or scalar, identical bytes.
// Raw pointers in, results out; allocates nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

inline constexpr uint32_t kRansLanes = 32;
inline constexpr uint32_t kRansSymbols = 32;
inline constexpr uint32_t kRansMaxTables = 64;

// A table is 32 frequencies that sum to 256; a symbol of frequency 0 cannot be coded with it, one
// of frequency 256 costs nothing.
struct RansTables {
  alignas(64) uint8_t symbol_of_slot[kRansMaxTables][256];
  alignas(64) uint16_t frequency[kRansMaxTables][kRansSymbols];
  alignas(64) uint16_t start[kRansMaxTables][kRansSymbols];
  alignas(64) uint16_t reciprocal[kRansMaxTables][kRansSymbols];  // 65535 / frequency
};

// Fills table `id` (below kRansMaxTables). False, and nothing written, when they do not sum to 256.
bool RansBuildTable(const uint16_t frequencies[kRansSymbols], uint32_t id, RansTables* tables);

// Symbols come in rounds of one a lane. Rounds form groups of `group` rounds, the last of which has
// only its first `tail_lanes` lanes (1 .. 32); the others have all 32.
struct RansShape {
  uint32_t rounds = 0;  // a multiple of group
  uint32_t group = 1;
  uint32_t tail_lanes = kRansLanes;

  uint32_t Lanes(uint32_t round) const {
    return round % group == group - 1 ? tail_lanes : kRansLanes;
  }
  // Lanes that are ever active: as many states are stored.
  uint32_t States() const { return group == 1 ? tail_lanes : kRansLanes; }
};

// Room that an encoder needs.
inline size_t RansBound(const RansShape& shape) {
  return 2 * kRansLanes + size_t{kRansLanes} * shape.rounds;
}

// One stream: symbols[round * 32 + lane], each below 32, with table schedule[round].
// Returns the bytes written to `out` (room for RansBound), or 0 when a symbol has frequency 0.
size_t RansEncode(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                  const uint8_t* symbols, uint8_t* out);

struct RansStream {
  const uint8_t* data = nullptr;
  size_t size = 0;
  const uint8_t* schedule = nullptr;  // a table id a round
  uint8_t* symbols = nullptr;         // 32 a round; those of lanes that are not active are 0
  bool ok = false;                    // out: the bytes were a whole stream
};
// Streams of one shape, several in lockstep. Any bytes are safe: nothing is read or written outside
// of the given ranges; damage shows in `ok`, or gives wrong symbols, each below 32.
void RansDecode(const RansTables& tables, const RansShape& shape, RansStream* streams,
                size_t count);

// The first `rounds` rounds only, 32 symbols each; false when the bytes do not reach.
bool RansPeek(const RansTables& tables, const RansShape& shape, const uint8_t* data, size_t size,
              const uint8_t* schedule, uint32_t rounds, uint8_t* symbols);

// Scalar references.
size_t RansEncodeScalar(const RansTables& tables, const RansShape& shape, const uint8_t* schedule,
                        const uint8_t* symbols, uint8_t* out);
void RansDecodeScalar(const RansTables& tables, const RansShape& shape, RansStream* streams,
                      size_t count);

// "avx512-vbmi2" or "scalar": what dispatch picked on this machine.
const char* RansImplementation();

}  // namespace terrace::kernels
