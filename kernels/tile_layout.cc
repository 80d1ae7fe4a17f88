#include "kernels/tile_layout.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace terrace::kernels {
namespace {

#if defined(__SSE2__)
// Eight channels of eight lanes to eight tokens.
void TransposeEight(const int16_t* rounds, size_t stride, size_t channels, size_t lanes,
                    const uint8_t* token_of_lane, int16_t* out) {
  __m128i rows[8], pairs[8];
  for (size_t c = 0; c < 8; ++c) {
    rows[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rounds + c * stride));
  }
  for (size_t i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
  }
  for (size_t i = 0; i < 2; ++i) {
    rows[4 * i] = _mm_unpacklo_epi32(pairs[4 * i], pairs[4 * i + 2]);
    rows[4 * i + 1] = _mm_unpackhi_epi32(pairs[4 * i], pairs[4 * i + 2]);
    rows[4 * i + 2] = _mm_unpacklo_epi32(pairs[4 * i + 1], pairs[4 * i + 3]);
    rows[4 * i + 3] = _mm_unpackhi_epi32(pairs[4 * i + 1], pairs[4 * i + 3]);
  }
  for (size_t i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm_unpacklo_epi64(rows[i], rows[i + 4]);
    pairs[2 * i + 1] = _mm_unpackhi_epi64(rows[i], rows[i + 4]);
  }
  for (size_t lane = 0; lane < lanes; ++lane) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + token_of_lane[lane] * channels), pairs[lane]);
  }
}
#endif

}  // namespace

void TransposeLanesScalar(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                          const uint8_t* token_of_lane, int16_t* out) {
  for (size_t c = 0; c < channels; ++c) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      out[token_of_lane[lane] * channels + c] = rounds[c * stride + lane];
    }
  }
}

void TransposeLanes(const int16_t* rounds, size_t channels, size_t stride, size_t lanes,
                    const uint8_t* token_of_lane, int16_t* out) {
  size_t c = 0;
#if defined(__SSE2__)
  for (; c + 8 <= channels; c += 8) {
    for (size_t lane = 0; lane < lanes; lane += 8) {
      TransposeEight(rounds + c * stride + lane, stride, channels,
                     lanes - lane < 8 ? lanes - lane : 8, token_of_lane + lane, out + c);
    }
  }
#endif
  for (; c < channels; ++c) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      out[token_of_lane[lane] * channels + c] = rounds[c * stride + lane];
    }
  }
}

}  // namespace terrace::kernels
