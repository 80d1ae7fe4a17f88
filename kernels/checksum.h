// CRC32C (Castagnoli, RFC 3720) and the fused copy-and-checksum of the store path. Run-time
// dispatch on CPU features with a scalar reference that is always built and tested against.
// Raw pointers in, results out; allocates nothing, cannot fail. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// What is written past the caches, as it is more than the caches should be swept for.
constexpr size_t kStreamBytes = 256 * 1024;

// CRC32C of `bytes` bytes, continuing from `crc` (0 to start).
uint32_t Crc32c(const void* data, size_t bytes, uint32_t crc = 0);
// Copies and returns the CRC32C of the bytes copied, in one pass. Uses streaming (non-temporal)
// stores from kStreamBytes on, so a store does not sweep the cache; fenced before returning.
uint32_t CopyCrc32c(void* destination, const void* source, size_t bytes, uint32_t crc = 0);

// The CRC32C of A followed by B, from those of A and B and the length of B. Microseconds, whatever
// the length: A's is multiplied by x^(8 bytes_b) modulo the polynomial.
uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t bytes_b);

// Scalar references.
uint32_t Crc32cScalar(const void* data, size_t bytes, uint32_t crc = 0);
uint32_t CopyCrc32cScalar(void* destination, const void* source, size_t bytes, uint32_t crc = 0);

// The path of machines without AVX-512, so that tests on machines with it cover it too. Scalar
// where even SSE4.2 and PCLMUL are missing.
uint32_t Crc32cSse(const void* data, size_t bytes, uint32_t crc = 0);
uint32_t CopyCrc32cSse(void* destination, const void* source, size_t bytes, uint32_t crc = 0);

// "avx512-vpclmul", "sse4.2-pclmul" or "scalar": what dispatch picked on this machine.
const char* ChecksumImplementation();

}  // namespace terrace::kernels
