#include "kernels/checksum.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// CRC32C by folding: a message is congruent, modulo the CRC polynomial, to itself with its first
// block multiplied by x^D and added D bits further on. Carry-less multiplication does that for
// 128 bits at a time (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
// Instruction", Intel 2009). The loops below fold the whole message into one block of a few
// accumulators and let the crc32 instruction finish that block, so no Barrett reduction is needed.

namespace terrace::kernels {

namespace {

constexpr uint32_t kPolynomial = 0x1EDC6F41;           // normal bit order
constexpr uint32_t kPolynomialReflected = 0x82F63B78;  // as the tables use it

constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomialReflected : 0);
    tables[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i) {
    for (int slice = 1; slice < 8; ++slice) {
      const uint32_t previous = tables[slice - 1][i];
      tables[slice][i] = previous >> 8 ^ tables[0][previous & 0xff];
    }
  }
  return tables;
}
constexpr auto kTables = MakeTables();

// a * b modulo the polynomial, all reflected.
constexpr uint32_t MultiplyModulo(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (; a != 0; a <<= 1) {
    if ((a >> 31) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomialReflected : b >> 1;
  }
  return product;
}

// The state functions work on the inverted register; the public ones invert on entry and exit.
uint32_t StateScalar(uint32_t state, const uint8_t* data, size_t bytes) {
  while (bytes >= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= state;
    state = 0;
    for (int i = 0; i < 8; ++i) state ^= kTables[7 - i][word >> (8 * i) & 0xff];
    data += 8;
    bytes -= 8;
  }
  while (bytes-- > 0) state = state >> 8 ^ kTables[0][(state ^ *data++) & 0xff];
  return state;
}

#if defined(__x86_64__)

// The bit-reflected, shifted constant for multiplying by x^power modulo the polynomial.
constexpr uint64_t FoldConstant(unsigned power) {
  uint32_t remainder = 1;
  for (unsigned i = 0; i < power; ++i) {
    remainder = remainder << 1 ^ (remainder & 0x80000000u ? kPolynomial : 0);
  }
  uint32_t reflected = 0;
  for (int bit = 0; bit < 32; ++bit) reflected |= (remainder >> bit & 1) << (31 - bit);
  return uint64_t{reflected} << 1;
}

constexpr size_t kSseBlock = 64;      // 4 accumulators of 16 bytes
constexpr size_t kAvx512Block = 256;  // 4 accumulators of 64 bytes

// Named so that they are computed at compile time in every build. A fold moves a block by its own
// length; the low half of an accumulator lies 64 bits further from the end than the high half.
constexpr uint64_t kSseFoldLow = FoldConstant(kSseBlock * 8 + 32);
constexpr uint64_t kSseFoldHigh = FoldConstant(kSseBlock * 8 - 32);
constexpr uint64_t kAvx512FoldLow = FoldConstant(kAvx512Block * 8 + 32);
constexpr uint64_t kAvx512FoldHigh = FoldConstant(kAvx512Block * 8 - 32);

// Larger copies go around the cache: nobody reads the destination soon enough to find it there.

enum class Copy { kNone, kCached, kStreamed };

#define TERRACE_SSE __attribute__((target("sse4.2,pclmul")))
#define TERRACE_AVX512 __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))

TERRACE_SSE uint32_t StateCrc32(uint32_t state, const uint8_t* data, size_t bytes) {
  uint64_t wide = state;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  state = static_cast<uint32_t>(wide);
  for (; bytes > 0; --bytes) state = _mm_crc32_u8(state, *data++);
  return state;
}

template <Copy copy>
TERRACE_SSE uint32_t StateSse(uint32_t state, uint8_t* to, const uint8_t* from, size_t bytes) {
  if (bytes >= 2 * kSseBlock) {
    const __m128i constants = _mm_set_epi64x(kSseFoldHigh, kSseFoldLow);
    __m128i accumulators[4];
    for (int i = 0; i < 4; ++i) accumulators[i] = _mm_setzero_si128();
    bool first = true;
    for (; bytes >= kSseBlock; from += kSseBlock, bytes -= kSseBlock) {
      for (int i = 0; i < 4; ++i) {
        const __m128i data = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
        if constexpr (copy == Copy::kStreamed) {
          _mm_stream_si128(reinterpret_cast<__m128i*>(to + 16 * i), data);
        } else if constexpr (copy == Copy::kCached) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * i), data);
        }
        const __m128i low = _mm_clmulepi64_si128(accumulators[i], constants, 0x00);
        const __m128i high = _mm_clmulepi64_si128(accumulators[i], constants, 0x11);
        accumulators[i] = _mm_xor_si128(data, _mm_xor_si128(low, high));
      }
      if (first) accumulators[0] = _mm_xor_si128(accumulators[0], _mm_cvtsi32_si128(state));
      first = false;
      if constexpr (copy != Copy::kNone) to += kSseBlock;
    }
    alignas(16) uint8_t folded[kSseBlock];
    for (int i = 0; i < 4; ++i) {
      _mm_store_si128(reinterpret_cast<__m128i*>(folded + 16 * i), accumulators[i]);
    }
    state = StateCrc32(0, folded, kSseBlock);
  }
  if constexpr (copy != Copy::kNone) {
    if (bytes > 0) std::memcpy(to, from, bytes);  // both may be null when there is nothing to copy
  }
  return StateCrc32(state, from, bytes);
}

template <Copy copy>
TERRACE_AVX512 uint32_t StateAvx512(uint32_t state, uint8_t* to, const uint8_t* from,
                                    size_t bytes) {
  if (bytes >= 2 * kAvx512Block) {
    const __m512i constants =
        _mm512_broadcast_i32x4(_mm_set_epi64x(kAvx512FoldHigh, kAvx512FoldLow));
    __m512i accumulators[4];
    for (int i = 0; i < 4; ++i) accumulators[i] = _mm512_setzero_si512();
    bool first = true;
    for (; bytes >= kAvx512Block; from += kAvx512Block, bytes -= kAvx512Block) {
      for (int i = 0; i < 4; ++i) {
        const __m512i data = _mm512_loadu_si512(from + 64 * i);
        if constexpr (copy == Copy::kStreamed) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64 * i), data);
        } else if constexpr (copy == Copy::kCached) {
          _mm512_storeu_si512(to + 64 * i, data);
        }
        const __m512i low = _mm512_clmulepi64_epi128(accumulators[i], constants, 0x00);
        const __m512i high = _mm512_clmulepi64_epi128(accumulators[i], constants, 0x11);
        accumulators[i] = _mm512_ternarylogic_epi64(data, low, high, 0x96);  // three-way xor
      }
      if (first) {
        accumulators[0] = _mm512_xor_si512(
            accumulators[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state))));
      }
      first = false;
      if constexpr (copy != Copy::kNone) to += kAvx512Block;
    }
    alignas(64) uint8_t folded[kAvx512Block];
    for (int i = 0; i < 4; ++i) _mm512_store_si512(folded + 64 * i, accumulators[i]);
    state = StateCrc32(0, folded, kAvx512Block);
  }
  return StateSse<copy>(state, to, from, bytes);
}

enum class Isa { kScalar, kSse, kAvx512 };

Isa DetectIsa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul")) return Isa::kScalar;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("vpclmulqdq")) {
    return Isa::kAvx512;
  }
  return Isa::kSse;
}
const Isa kIsa = DetectIsa();

template <Copy copy>
uint32_t Dispatch(Isa isa, uint32_t state, uint8_t* to, const uint8_t* from, size_t bytes) {
  switch (isa) {
    case Isa::kAvx512:
      return StateAvx512<copy>(state, to, from, bytes);
    case Isa::kSse:
      return StateSse<copy>(state, to, from, bytes);
    case Isa::kScalar:
      break;
  }
  if constexpr (copy != Copy::kNone) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  return StateScalar(state, from, bytes);
}

uint32_t StateCopy(Isa isa, uint32_t state, uint8_t* to, const uint8_t* from, size_t bytes) {
  if (bytes < kStreamBytes) return Dispatch<Copy::kCached>(isa, state, to, from, bytes);
  // Streaming stores need an aligned destination.
  const size_t head = (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
  state = Dispatch<Copy::kCached>(isa, state, to, from, head);
  state = Dispatch<Copy::kStreamed>(isa, state, to + head, from + head, bytes - head);
  _mm_sfence();
  return state;
}

#endif  // __x86_64__

}  // namespace

uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b) {
  // x^8, squared for each bit of the length. Reflected: the highest bit is the coefficient of x^0.
  uint32_t power = uint32_t{1} << (31 - 8);
  uint32_t shift = uint32_t{1} << 31;
  for (; bytes_b != 0; bytes_b >>= 1) {
    if ((bytes_b & 1) != 0) shift = MultiplyModulo(shift, power);
    power = MultiplyModulo(power, power);
  }
  return MultiplyModulo(crc_a, shift) ^ crc_b;
}

uint32_t Crc32cScalar(const void* data, size_t bytes, uint32_t crc) {
  return ~StateScalar(~crc, static_cast<const uint8_t*>(data), bytes);
}

uint32_t CopyCrc32cScalar(void* destination, const void* source, size_t bytes, uint32_t crc) {
  if (bytes > 0) std::memcpy(destination, source, bytes);
  return Crc32cScalar(source, bytes, crc);
}

#if defined(__x86_64__)

uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc) {
  return ~Dispatch<Copy::kNone>(kIsa, ~crc, nullptr, static_cast<const uint8_t*>(data), bytes);
}

uint32_t CopyCrc32c(void* destination, const void* source, size_t bytes, uint32_t crc) {
  return ~StateCopy(kIsa, ~crc, static_cast<uint8_t*>(destination),
                    static_cast<const uint8_t*>(source), bytes);
}

uint32_t Crc32cSse(const void* data, size_t bytes, uint32_t crc) {
  return ~Dispatch<Copy::kNone>(std::min(kIsa, Isa::kSse), ~crc, nullptr,
                                static_cast<const uint8_t*>(data), bytes);
}

uint32_t CopyCrc32cSse(void* destination, const void* source, size_t bytes, uint32_t crc) {
  return ~StateCopy(std::min(kIsa, Isa::kSse), ~crc, static_cast<uint8_t*>(destination),
                    static_cast<const uint8_t*>(source), bytes);
}

const char* ChecksumImplementation() {
  switch (kIsa) {
    case Isa::kAvx512:
      return "avx512-vpclmul";
    case Isa::kSse:
      return "sse4.2-pclmul";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

#else

uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc) {
  return Crc32cScalar(data, bytes, crc);
}
uint32_t CopyCrc32c(void* destination, const void* source, size_t bytes, uint32_t crc) {
  return CopyCrc32cScalar(destination, source, bytes, crc);
}
uint32_t Crc32cSse(const void* data, size_t bytes, uint32_t crc) {
  return Crc32cScalar(data, bytes, crc);
}
uint32_t CopyCrc32cSse(void* destination, const void* source, size_t bytes, uint32_t crc) {
  return CopyCrc32cScalar(destination, source, bytes, crc);
}
const char* ChecksumImplementation() { return "scalar"; }

#endif

}  // namespace terrace::kernels
