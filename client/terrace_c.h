/* The C ABI of libterrace, for bindings. Semantics are those of client/terrace.h.
 *
 * Every function that can fail returns a status code, 0 for success; the numbers are those of
 * absl::StatusCode (TERRACE_* below). terrace_last_error() then says why, on the calling thread.
 * Outputs are written on success only, unless a function says otherwise. A NULL that is not allowed
 * is TERRACE_INVALID_ARGUMENT naming the argument. Handles are freed by the function named with
 * them; freeing NULL does nothing. Threads: as the C++ classes.
 */
#ifndef TERRACE_CLIENT_TERRACE_C_H_
#define TERRACE_CLIENT_TERRACE_C_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TERRACE_EXPORT __attribute__((visibility("default")))

enum {
  TERRACE_OK = 0,
  TERRACE_CANCELLED = 1,
  TERRACE_UNKNOWN = 2,
  TERRACE_INVALID_ARGUMENT = 3,
  TERRACE_DEADLINE_EXCEEDED = 4,
  TERRACE_NOT_FOUND = 5, /* a miss, or a lease that ran out */
  TERRACE_ALREADY_EXISTS = 6,
  TERRACE_PERMISSION_DENIED = 7,
  TERRACE_RESOURCE_EXHAUSTED = 8,  /* back-pressure or a limit */
  TERRACE_FAILED_PRECONDITION = 9, /* layout or protocol mismatch */
  TERRACE_ABORTED = 10,
  TERRACE_OUT_OF_RANGE = 11,
  TERRACE_UNIMPLEMENTED = 12,
  TERRACE_INTERNAL = 13,
  TERRACE_UNAVAILABLE = 14, /* the daemon is gone */
  TERRACE_DATA_LOSS = 15    /* checksum, or a load that failed */
};

#define TERRACE_NO_TIMEOUT 0xffffffffu
#define TERRACE_KEY_BYTES 32

typedef struct terrace_client terrace_client; /* terrace_close */
typedef struct terrace_model terrace_model;   /* terrace_model_free */
typedef struct terrace_match terrace_match;   /* terrace_match_free */
typedef struct terrace_lease terrace_lease;   /* terrace_lease_release */
typedef struct terrace_store terrace_store;   /* terrace_store_free */

TERRACE_EXPORT const char* terrace_version(void);
/* Of the last call on this thread that failed; valid until the next call on it. Never NULL. */
TERRACE_EXPORT const char* terrace_last_error(void);
/* Frees text that a function handed out. */
TERRACE_EXPORT void terrace_free(void* text);

/* ---- connecting ---- */

/* Set struct_size to sizeof; zero or NULL means the default for every other member. */
typedef struct {
  size_t struct_size;
  const char* socket_path;
  const char* tenant;
  const char* client_name;
  uint32_t call_timeout_ms;
  uint32_t room_timeout_ms;
} terrace_connect_options;

typedef struct {
  size_t struct_size;
  const char* directory; /* required */
  const char* daemon_path;
  const char* client_name;
  uint64_t host_capacity_bytes;
  uint64_t nvme_capacity_bytes;
  uint32_t verify_always; /* 0 or 1 */
  uint32_t start_timeout_ms;
  uint32_t call_timeout_ms;
  uint32_t room_timeout_ms;
} terrace_spawn_options;

/* options may be NULL. */
TERRACE_EXPORT int32_t terrace_connect(const terrace_connect_options* options,
                                       terrace_client** out);
TERRACE_EXPORT int32_t terrace_spawn(const terrace_spawn_options* options, terrace_client** out);
/* Ends the session and frees the handle. Leases and stores made from it stay valid handles whose
 * calls answer TERRACE_UNAVAILABLE; memory they handed out stays mapped until they are freed. */
TERRACE_EXPORT void terrace_close(terrace_client* client);
TERRACE_EXPORT int32_t terrace_alive(const terrace_client* client);       /* 1 or 0 */
TERRACE_EXPORT int32_t terrace_spawned_pid(const terrace_client* client); /* 0: none */
/* Borrowed eventfd, see Client::ready_event_fd; -1 for NULL. */
TERRACE_EXPORT int32_t terrace_event_fd(const terrace_client* client);
/* Borrowed texts that live as long as the client; "" for NULL. */
TERRACE_EXPORT const char* terrace_server_version(const terrace_client* client);
TERRACE_EXPORT const char* terrace_socket_path(const terrace_client* client);
TERRACE_EXPORT const char* terrace_tenant(const terrace_client* client);

/* ---- models ---- */

typedef struct {
  size_t struct_size;
  const char* model_id; /* required */
  const char* dtype;    /* required: "float32" "float16" "bfloat16" "float8_e4m3fn" ... */
  const char* order;    /* "token_major" (default) or "head_major" */
  uint32_t layers;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t v_head_dim; /* 0: as head_dim */
  double rope_theta;
  const char* rope_scaling;
  uint32_t tp_rank, tp_size; /* sizes: 0 means 1 */
  uint32_t pp_rank, pp_size;
  const char* lora;
  const char* engine_layout;
} terrace_kv_geometry;

TERRACE_EXPORT int32_t terrace_register_kv(terrace_client* client,
                                           const terrace_kv_geometry* geometry,
                                           terrace_model** out);
TERRACE_EXPORT void terrace_model_free(terrace_model* model);
TERRACE_EXPORT int32_t terrace_model_fingerprint(const terrace_model* model,
                                                 uint8_t out[TERRACE_KEY_BYTES]);
/* The chain value after each full grain of 16 tokens: token_count / 16 keys, one after the other.
 * ResourceExhausted when capacity_keys is smaller; *count is set in both cases. */
TERRACE_EXPORT int32_t terrace_grain_keys(const terrace_client* client, const terrace_model* model,
                                          const uint32_t* tokens, size_t token_count,
                                          const void* extra, size_t extra_bytes, uint8_t* keys,
                                          size_t capacity_keys, size_t* count);

/* ---- loading ---- */

typedef struct {
  uint8_t key[TERRACE_KEY_BYTES];
  uint32_t token_begin;
  uint32_t matched_tokens; /* leading tokens of the object that are the prompt's */
  uint32_t object_tokens;  /* length of the token axis of its parts */
  uint32_t eta_us;
  uint64_t bytes;
  uint32_t tier;  /* 1 host, 2 nvme */
  uint32_t flags; /* 1 durable, 2 pinned */
} terrace_chunk_info;

/* extra may be NULL with extra_bytes 0; tokens may be NULL with token_count 0. */
TERRACE_EXPORT int32_t terrace_match_prefix(terrace_client* client, const terrace_model* model,
                                            const uint32_t* tokens, size_t token_count,
                                            const void* extra, size_t extra_bytes,
                                            terrace_match** out);
TERRACE_EXPORT void terrace_match_free(terrace_match* match);
TERRACE_EXPORT uint32_t terrace_match_tokens(const terrace_match* match);
TERRACE_EXPORT size_t terrace_match_chunk_count(const terrace_match* match);
TERRACE_EXPORT int32_t terrace_match_chunk(const terrace_match* match, size_t chunk,
                                           terrace_chunk_info* out);

/* ttl_ms 0: the daemon's default. priority 0 (demand) .. 4 (background). */
TERRACE_EXPORT int32_t terrace_acquire(terrace_client* client, const terrace_model* model,
                                       const terrace_match* match, uint32_t ttl_ms,
                                       uint8_t priority, terrace_lease** out);
/* The same with the objects in memory 0, the host's, or 1, a device's, where views then point to.
   TERRACE_FAILED_PRECONDITION: the daemon has no HBM tier. */
TERRACE_EXPORT int32_t terrace_acquire_in(terrace_client* client, const terrace_model* model,
                                          const terrace_match* match, uint32_t ttl_ms,
                                          uint8_t priority, uint8_t memory, terrace_lease** out);
/* Ends the lease and frees the handle: views from it must not be read any more. */
TERRACE_EXPORT void terrace_lease_release(terrace_lease* lease);
TERRACE_EXPORT size_t terrace_lease_chunk_count(const terrace_lease* lease);
TERRACE_EXPORT int32_t terrace_lease_chunk(const terrace_lease* lease, size_t chunk,
                                           terrace_chunk_info* out);
TERRACE_EXPORT uint32_t terrace_lease_usable_chunks(const terrace_lease* lease);
TERRACE_EXPORT uint32_t terrace_lease_usable_tokens(const terrace_lease* lease);
TERRACE_EXPORT int32_t terrace_wait_layer(terrace_lease* lease, uint32_t layer,
                                          uint32_t timeout_ms);
TERRACE_EXPORT int32_t terrace_wait_all(terrace_lease* lease, uint32_t timeout_ms);
/* Leading parts that are there, the identity part included: layer l is there from 3 + 2 * l on. */
TERRACE_EXPORT uint32_t terrace_ready_parts(const terrace_lease* lease, size_t chunk);
/* Copies the first `tokens` tokens of a layer's K or V, out of all chunks, to `rows` runs (KV heads
   when head-major, 1 when token-major) that begin `stride_bytes` apart. */
TERRACE_EXPORT int32_t terrace_read_rows(terrace_lease* lease, uint32_t layer, uint32_t kv,
                                         uint32_t tokens, void* destination, size_t rows,
                                         size_t stride_bytes);
/* kv: 0 is K, 1 is V. Borrowed until the lease ends. */
TERRACE_EXPORT int32_t terrace_part(terrace_lease* lease, size_t chunk, uint32_t layer, uint32_t kv,
                                    const void** data, size_t* bytes);
TERRACE_EXPORT int32_t terrace_renew(terrace_lease* lease, uint32_t ttl_ms);
TERRACE_EXPORT int32_t terrace_expired(const terrace_lease* lease);      /* 1 or 0 */
TERRACE_EXPORT uint64_t terrace_deadline_us(const terrace_lease* lease); /* CLOCK_MONOTONIC */

/* ---- storing ---- */

typedef struct {
  uint8_t key[TERRACE_KEY_BYTES];
  uint32_t token_begin;
  uint32_t token_count;
  uint32_t needed; /* 1: write it */
} terrace_store_chunk_info_t;

typedef struct {
  uint32_t stored;
  uint32_t already;
  uint32_t failed;
  int32_t why; /* status code of the first failed chunk; terrace_last_error() has its text */
  uint64_t stored_bytes;
} terrace_commit_report;

TERRACE_EXPORT int32_t terrace_begin_store(terrace_client* client, const terrace_model* model,
                                           const uint32_t* tokens, size_t token_count,
                                           const void* extra, size_t extra_bytes, uint64_t cost_us,
                                           terrace_store** out);
/* Aborts what was not committed and frees the handle. */
TERRACE_EXPORT void terrace_store_free(terrace_store* store);
TERRACE_EXPORT size_t terrace_store_chunk_count(const terrace_store* store);
TERRACE_EXPORT int32_t terrace_store_chunk_info(const terrace_store* store, size_t chunk,
                                                terrace_store_chunk_info_t* out);
TERRACE_EXPORT int32_t terrace_store_write(terrace_store* store, size_t chunk, uint32_t layer,
                                           uint32_t kv, const void* source, size_t bytes);
TERRACE_EXPORT int32_t terrace_store_write_rows(terrace_store* store, size_t chunk, uint32_t layer,
                                                uint32_t kv, const void* source, size_t rows,
                                                size_t row_bytes, size_t stride_bytes);
TERRACE_EXPORT int32_t terrace_store_buffer(terrace_store* store, size_t chunk, uint32_t layer,
                                            uint32_t kv, void** data, size_t* bytes);
/* report may be NULL; it is filled on failure too. */
TERRACE_EXPORT int32_t terrace_store_commit(terrace_store* store, terrace_commit_report* report);
/* Gives everything back now; the handle stays. */
TERRACE_EXPORT int32_t terrace_store_abort(terrace_store* store);

/* ---- blocks: objects under an engine's own keys, in batches (Client::RegisterBlocks) ----
 *
 * Leases and stores of blocks are handles like any others; their chunk i is the i-th key. Keys are
 * arrays of count x 32 bytes, parts are numbered from 1. */

/* `space` holds everything that decides what the bytes mean. */
TERRACE_EXPORT int32_t terrace_register_blocks(terrace_client* client, const void* space,
                                               size_t space_bytes, const uint64_t* part_bytes,
                                               size_t parts, terrace_model** out);
/* Keys of engine's names, which lie one after the other in `names`. */
TERRACE_EXPORT int32_t terrace_block_keys(const terrace_client* client, const terrace_model* model,
                                          const void* salt, size_t salt_bytes, const void* names,
                                          const uint32_t* name_bytes, size_t count, uint8_t* keys);

typedef struct {
  uint64_t bytes;  /* payload; 0 where it is not there */
  uint32_t eta_us; /* until it could be in memory, after those before it */
  uint8_t tier;    /* 0 nowhere, 1 host, 2 nvme */
  uint8_t flags;   /* 1 durable, 2 pinned, 4 sooner made again: TERRACE_BLOCK_RECOMPUTE */
  uint16_t reserved;
} terrace_block_info;

/* Making the block again, and all behind it in the leading run that is there, is expected to take
 * less time than loading them. For keys that build on each other. */
#define TERRACE_BLOCK_RECOMPUTE 4

/* One answer a key. */
TERRACE_EXPORT int32_t terrace_find_blocks(terrace_client* client, const terrace_model* model,
                                           const uint8_t* keys, size_t count,
                                           terrace_block_info* out);
/* The leading run of keys that is there: see terrace_lease_usable_chunks. */
TERRACE_EXPORT int32_t terrace_acquire_blocks(terrace_client* client, const terrace_model* model,
                                              const uint8_t* keys, size_t count, uint32_t ttl_ms,
                                              uint8_t priority, terrace_lease** out);
/* Waits for the parts up to and with `part` of every usable block. */
TERRACE_EXPORT int32_t terrace_wait_parts(terrace_lease* lease, uint32_t part, uint32_t timeout_ms);
/* A part in place. Borrowed until the lease ends. */
TERRACE_EXPORT int32_t terrace_block_part(terrace_lease* lease, size_t block, uint32_t part,
                                          const void** data, size_t* bytes);

/* A piece of an engine's memory. Pieces of the same part of the same block follow each other. */
typedef struct {
  uint32_t block;
  uint32_t part;
  uint64_t address;
  uint64_t bytes;
} terrace_block_piece;

/* Copies parts to pieces; threads 0: as many as pay. */
TERRACE_EXPORT int32_t terrace_scatter(terrace_lease* lease, const terrace_block_piece* pieces,
                                       size_t count, uint32_t threads);

#define TERRACE_UNKNOWN_POSITION 0xffffffffu

/* `parents`: count x 32 bytes, for each key the block before it in its prompt, which leaves memory
 * after it; zeros: none, or not known. `positions`: how many blocks are before each in its prompt,
 * or TERRACE_UNKNOWN_POSITION. Both may be NULL. */
TERRACE_EXPORT int32_t terrace_begin_blocks(terrace_client* client, const terrace_model* model,
                                            const uint8_t* keys, size_t count,
                                            const uint8_t* parents, const uint32_t* positions,
                                            uint64_t cost_us, terrace_store** out);
/* needed[i] becomes 1 where block i is to be written; capacity is the number of keys at least. */
TERRACE_EXPORT int32_t terrace_store_needed(const terrace_store* store, uint8_t* needed,
                                            size_t capacity);
/* Copies pieces to parts; those of blocks that are not needed are skipped. */
TERRACE_EXPORT int32_t terrace_gather(terrace_store* store, const terrace_block_piece* pieces,
                                      size_t count, uint32_t threads);
/* A part's place, for writing it there. */
TERRACE_EXPORT int32_t terrace_store_block_part(terrace_store* store, size_t block, uint32_t part,
                                                void** data, size_t* bytes);

/* ---- hints: what will be read, and when (Client::Hint) ---- */

enum {
  TERRACE_HINT_QUEUE = 0,     /* a waiting request */
  TERRACE_HINT_DOCUMENTS = 1, /* what a retrieval found */
  TERRACE_HINT_SESSION = 2,   /* an idle conversation, expected to return */
  TERRACE_HINT_EXPERTS = 3    /* weights expected to be routed to */
};

/* Set struct_size to sizeof. Times are microseconds from now. */
typedef struct {
  size_t struct_size;
  uint32_t kind;          /* TERRACE_HINT_* */
  uint32_t order;         /* place in the queue, 0 is next */
  uint64_t request_id;    /* said again, it takes the place of what was said */
  uint64_t eta_us;        /* until its first byte is wanted; 0: unknown */
  uint64_t deadline_us;   /* after which nobody wants it; 0: none */
  float confidence;       /* 0 .. 1; 0 is no default */
  const uint32_t* tokens; /* a prompt; needs a model */
  size_t token_count;
  const void* extra;
  size_t extra_bytes;
  const uint8_t* keys; /* or objects: key_count x 32 bytes, in order of need */
  size_t key_count;
} terrace_expected_read;

typedef struct {
  uint32_t accepted; /* hints taken whole */
  uint32_t refused;
  uint64_t keys; /* objects expected from now on */
  int32_t why;   /* status code of the first refused one; terrace_last_error() has its text */
} terrace_hint_report;

/* Never waits for a disk and promises nothing. model may be NULL when every read gives keys;
 * report may be NULL. */
TERRACE_EXPORT int32_t terrace_hint(terrace_client* client, const terrace_model* model,
                                    const terrace_expected_read* reads, size_t count,
                                    terrace_hint_report* report);
/* The requests are gone. Unknown ones are fine. */
TERRACE_EXPORT int32_t terrace_withdraw(terrace_client* client, const uint64_t* request_ids,
                                        size_t count, terrace_hint_report* report);

/* ---- opaque objects ---- */

TERRACE_EXPORT int32_t terrace_opaque_key(const terrace_client* client, const void* name,
                                          size_t name_bytes, uint8_t out[TERRACE_KEY_BYTES]);
TERRACE_EXPORT int32_t terrace_put(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES],
                                   const void* data, size_t bytes);
/* wait with terrace_wait_all, read with terrace_lease_bytes. */
TERRACE_EXPORT int32_t terrace_get(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES],
                                   uint32_t ttl_ms, terrace_lease** out);
TERRACE_EXPORT int32_t terrace_lease_bytes(terrace_lease* lease, const void** data, size_t* bytes);

/* ---- operators ---- */

/* JSON texts, one line; free with terrace_free. ls: {"objects": [...], "next_cursor": n}, 0 is the
 * end; limit 1 .. 1000. */
TERRACE_EXPORT int32_t terrace_status_json(terrace_client* client, char** out);
TERRACE_EXPORT int32_t terrace_ls_json(terrace_client* client, uint64_t cursor, uint32_t limit,
                                       char** out);
TERRACE_EXPORT int32_t terrace_show_json(terrace_client* client,
                                         const uint8_t key[TERRACE_KEY_BYTES], char** out);
TERRACE_EXPORT int32_t terrace_remove(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES]);
TERRACE_EXPORT int32_t terrace_pin(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES],
                                   int32_t pinned);
TERRACE_EXPORT int32_t terrace_flush(terrace_client* client, uint32_t timeout_ms);

typedef struct {
  uint64_t checked;
  uint64_t corrupt;
  uint64_t skipped;
  uint64_t bytes;
} terrace_verify_report;

TERRACE_EXPORT int32_t terrace_verify(terrace_client* client, terrace_verify_report* out);

#ifdef __cplusplus
}
#endif

#endif /* TERRACE_CLIENT_TERRACE_C_H_ */
