/* The C ABI of libterrace_codec: KV of one chunk to a container and back, without a daemon. For
 * calibration and measurement (client/python/terrace_kv/codec.py). Functions return 0 or a number
 * of absl::StatusCode; terrace_codec_last_error() then says why, on the calling thread. Any thread.
 */
#ifndef TERRACE_CODEC_CODEC_C_H_
#define TERRACE_CODEC_CODEC_C_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TERRACE_CODEC_EXPORT __attribute__((visibility("default")))

typedef struct terrace_codec terrace_codec; /* a parsed profile, and what encoding with it takes */

typedef struct terrace_codec_shape {
  uint64_t position; /* of the first token */
  uint32_t layers, heads, k_dim, v_dim, tokens;
  uint32_t dtype; /* 1 float32, 2 float16, 3 bfloat16, 4 fp8 e4m3, 5 fp8 e5m2, 6 int8 */
  uint32_t order; /* 1 [tokens, heads, dim], 2 [heads, tokens, dim] */
} terrace_codec_shape;

/* Parses a profile. */
TERRACE_CODEC_EXPORT int terrace_codec_open(const void* profile, size_t bytes,
                                            terrace_codec** codec);
TERRACE_CODEC_EXPORT void terrace_codec_close(terrace_codec* codec);

/* Options of "profile": a refinement to a third of the step, which may be cut off; the profile
 * itself in the container, which then decodes without. */
#define TERRACE_CODEC_REFINED 1u
#define TERRACE_CODEC_EMBED 2u

/* name: "raw", "lossless-fast", "lossless", "profile" or "zstd"; codec, lambda16, raw_head,
 * raw_tail and options are for "profile" alone, and codec may be NULL for the others. kv: the
 * sections (layer 0 K, layer 0 V, ...) one after the other. The container is freed with
 * terrace_codec_free. */
TERRACE_CODEC_EXPORT int terrace_codec_encode(const char* name, const terrace_codec* codec,
                                              const terrace_codec_shape* shape, int32_t lambda16,
                                              uint32_t raw_head, uint32_t raw_tail,
                                              uint32_t options, const void* kv, void** container,
                                              size_t* container_bytes);
/* codec may be NULL for a container that needs no profile. kv_bytes: the room at kv, which must be
 * what the shape says. */
TERRACE_CODEC_EXPORT int terrace_codec_decode(const terrace_codec* codec, const void* container,
                                              size_t container_bytes, void* kv, size_t kv_bytes);
/* The profile of a model that nobody calibrated, of one chunk of its KV (codec/default_profile.h).
 * pairing: of RoPE, 0 none, 1 half, 2 interleaved. Freed with terrace_codec_free. */
TERRACE_CODEC_EXPORT int terrace_codec_default_profile(const terrace_codec_shape* shape,
                                                       uint32_t pairing, uint32_t rotary_dim,
                                                       double theta, const char* model_id,
                                                       const void* kv, void** profile,
                                                       size_t* profile_bytes);
TERRACE_CODEC_EXPORT void terrace_codec_free(void* memory);

TERRACE_CODEC_EXPORT const char* terrace_codec_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* TERRACE_CODEC_CODEC_C_H_ */
