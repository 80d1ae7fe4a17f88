// The C ABI: checks arguments, calls the C++ client, turns statuses into codes and stops
// exceptions.
#include "client/terrace_c.h"

#include <cstdlib>

#include "client/terrace_c_support.h"

namespace terrace {
namespace {

static_assert(TERRACE_DATA_LOSS == static_cast<int>(absl::StatusCode::kDataLoss));
static_assert(TERRACE_UNAVAILABLE == static_cast<int>(absl::StatusCode::kUnavailable));
static_assert(TERRACE_NO_TIMEOUT == kNoTimeout);

absl::Status CheckKv(uint32_t kv) {
  if (kv <= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("kv: ", kv, "; expected 0 (K) or 1 (V)"));
}

absl::Status CheckLayer(uint32_t layer) {
  if (layer < kMaxParts) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer: ", layer, "; no layout has that many"));
}

std::string Text(const char* text) { return text == nullptr ? "" : text; }

void FillChunk(const ChunkMatch& chunk, terrace_chunk_info& out) {
  std::memcpy(out.key, chunk.key.bytes.data(), sizeof out.key);
  out.token_begin = chunk.token_begin;
  out.matched_tokens = chunk.matched_tokens;
  out.object_tokens = chunk.object_tokens;
  out.eta_us = chunk.info.eta_us;
  out.bytes = chunk.info.bytes;
  out.tier = static_cast<uint32_t>(chunk.info.tier);
  out.flags = chunk.info.flags;
}

absl::Status ChunkAt(absl::Span<const ChunkMatch> chunks, size_t index, terrace_chunk_info* out) {
  absl::Status valid = NotNull(out, "out");
  if (!valid.ok()) return valid;
  if (index >= chunks.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk: ", index, "; there are ", chunks.size()));
  }
  FillChunk(chunks[index], *out);
  return absl::OkStatus();
}

absl::StatusOr<KvGeometry> Geometry(const terrace_kv_geometry& in) {
  KvGeometry geometry;
  geometry.model_id = in.model_id;
  const auto dtype = ParseDtype(in.dtype);
  if (!dtype.ok()) return dtype.status();
  geometry.dtype = *dtype;
  const std::string order = in.order == nullptr ? "token_major" : in.order;
  if (order != "token_major" && order != "head_major") {
    return absl::InvalidArgumentError(absl::StrCat("geometry.order: '", order.substr(0, 64),
                                                   "'; expected token_major or head_major"));
  }
  geometry.order = order == "head_major" ? KvOrder::kHeadMajor : KvOrder::kTokenMajor;
  geometry.layers = in.layers;
  geometry.kv_heads = in.kv_heads;
  geometry.head_dim = in.head_dim;
  geometry.v_head_dim = in.v_head_dim == 0 ? in.head_dim : in.v_head_dim;
  geometry.rope_theta = in.rope_theta;
  geometry.rope_scaling = Text(in.rope_scaling);
  geometry.tp_rank = in.tp_rank;
  geometry.tp_size = in.tp_size == 0 ? 1 : in.tp_size;
  geometry.pp_rank = in.pp_rank;
  geometry.pp_size = in.pp_size == 0 ? 1 : in.pp_size;
  geometry.lora = Text(in.lora);
  geometry.engine_layout = Text(in.engine_layout);
  return geometry;
}

}  // namespace
}  // namespace terrace

using terrace::All;
using terrace::CheckKv;
using terrace::CheckLayer;
using terrace::Guard;
using terrace::KvPart;
using terrace::NotNull;
using terrace::NotNullUnlessEmpty;
using terrace::PartIndex;
using terrace::Text;
using terrace::View;

const char* terrace_version(void) { return TERRACE_VERSION; }
const char* terrace_last_error(void) { return terrace::LastError().c_str(); }
void terrace_free(void* text) { std::free(text); }

// --- connecting ---------------------------------------------------------------------------------

int32_t terrace_connect(const terrace_connect_options* options, terrace_client** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(out, "out");
    if (valid.ok() && options != nullptr) {
      valid = terrace::CheckStruct(options->struct_size, sizeof *options, "options");
    }
    if (!valid.ok()) return valid;
    terrace::ClientOptions client;
    if (options != nullptr) {
      client.socket_path = Text(options->socket_path);
      client.tenant = Text(options->tenant);
      if (options->client_name != nullptr) client.client_name = options->client_name;
      if (options->call_timeout_ms != 0) client.call_timeout_ms = options->call_timeout_ms;
      if (options->room_timeout_ms != 0) {
        client.room_timeout_ms = options->room_timeout_ms;
      }
    }
    auto connected = terrace::Client::Connect(std::move(client));
    if (!connected.ok()) return connected.status();
    *out = new terrace_client{*std::move(connected)};
    return absl::OkStatus();
  });
}

int32_t terrace_spawn(const terrace_spawn_options* options, terrace_client** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(options, "options"), NotNull(out, "out"));
    if (valid.ok()) {
      valid = terrace::CheckStruct(options->struct_size, sizeof *options, "options");
    }
    if (valid.ok()) valid = NotNull(options->directory, "options.directory");
    if (!valid.ok()) return valid;
    terrace::SpawnOptions spawn;
    spawn.directory = options->directory;
    spawn.daemon_path = Text(options->daemon_path);
    spawn.host_capacity_bytes = options->host_capacity_bytes;
    spawn.nvme_capacity_bytes = options->nvme_capacity_bytes;
    spawn.verify =
        options->verify_always != 0 ? terrace::VerifyMode::kAlways : terrace::VerifyMode::kCrossing;
    if (options->start_timeout_ms != 0) spawn.start_timeout_ms = options->start_timeout_ms;
    if (options->client_name != nullptr) spawn.client.client_name = options->client_name;
    if (options->call_timeout_ms != 0) spawn.client.call_timeout_ms = options->call_timeout_ms;
    if (options->room_timeout_ms != 0) {
      spawn.client.room_timeout_ms = options->room_timeout_ms;
    }
    auto spawned = terrace::Client::Spawn(std::move(spawn));
    if (!spawned.ok()) return spawned.status();
    *out = new terrace_client{*std::move(spawned)};
    return absl::OkStatus();
  });
}

void terrace_close(terrace_client* client) { delete client; }

int32_t terrace_alive(const terrace_client* client) {
  return client != nullptr && client->client->alive() ? 1 : 0;
}
int32_t terrace_spawned_pid(const terrace_client* client) {
  return client == nullptr ? 0 : client->client->spawned_pid();
}
int32_t terrace_event_fd(const terrace_client* client) {
  return client == nullptr ? -1 : client->client->ready_event_fd();
}
const char* terrace_server_version(const terrace_client* client) {
  return client == nullptr ? "" : client->client->welcome().server_version.c_str();
}
const char* terrace_socket_path(const terrace_client* client) {
  return client == nullptr ? "" : client->client->socket_path().c_str();
}
const char* terrace_tenant(const terrace_client* client) {
  return client == nullptr ? "" : client->client->welcome().tenant.c_str();
}

// --- models -------------------------------------------------------------------------------------

int32_t terrace_register_kv(terrace_client* client, const terrace_kv_geometry* geometry,
                            terrace_model** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(client, "client"), NotNull(geometry, "geometry"), NotNull(out, "out"));
    if (valid.ok()) {
      valid = terrace::CheckStruct(geometry->struct_size, sizeof *geometry, "geometry");
    }
    if (valid.ok()) {
      valid = All(NotNull(geometry->model_id, "geometry.model_id"),
                  NotNull(geometry->dtype, "geometry.dtype"));
    }
    if (!valid.ok()) return valid;
    const auto values = terrace::Geometry(*geometry);
    if (!values.ok()) return values.status();
    auto model = client->client->RegisterKv(*values);
    if (!model.ok()) return model.status();
    *out = new terrace_model{*std::move(model)};
    return absl::OkStatus();
  });
}

void terrace_model_free(terrace_model* model) { delete model; }

int32_t terrace_model_fingerprint(const terrace_model* model, uint8_t out[TERRACE_KEY_BYTES]) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(model, "model"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    std::memcpy(out, model->model.layout.fingerprint.data(), TERRACE_KEY_BYTES);
    return absl::OkStatus();
  });
}

int32_t terrace_grain_keys(const terrace_client* client, const terrace_model* model,
                           const uint32_t* tokens, size_t token_count, const void* extra,
                           size_t extra_bytes, uint8_t* keys, size_t capacity_keys, size_t* count) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(client, "client"), NotNull(model, "model"),
            NotNullUnlessEmpty(tokens, token_count, "tokens"),
            NotNullUnlessEmpty(extra, extra_bytes, "extra"),
            NotNullUnlessEmpty(keys, capacity_keys, "keys"), NotNull(count, "count"));
    if (!valid.ok()) return valid;
    *count = token_count / terrace::kGrainTokens;
    if (*count > capacity_keys) {
      return absl::ResourceExhaustedError(
          absl::StrCat("capacity_keys: ", capacity_keys, "; ", *count, " are needed"));
    }
    const auto grains =
        terrace::GrainKeys(client->client->welcome().salt, model->model.root,
                           absl::MakeConstSpan(tokens, token_count), View(extra, extra_bytes));
    for (size_t i = 0; i < grains.size(); ++i) {
      std::memcpy(keys + i * TERRACE_KEY_BYTES, grains[i].bytes.data(), TERRACE_KEY_BYTES);
    }
    return absl::OkStatus();
  });
}

// --- loading ------------------------------------------------------------------------------------

int32_t terrace_match_prefix(terrace_client* client, const terrace_model* model,
                             const uint32_t* tokens, size_t token_count, const void* extra,
                             size_t extra_bytes, terrace_match** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(model, "model"),
                             NotNullUnlessEmpty(tokens, token_count, "tokens"),
                             NotNullUnlessEmpty(extra, extra_bytes, "extra"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    auto match = client->client->MatchPrefix(model->model, absl::MakeConstSpan(tokens, token_count),
                                             View(extra, extra_bytes));
    if (!match.ok()) return match.status();
    *out = new terrace_match{*std::move(match)};
    return absl::OkStatus();
  });
}

void terrace_match_free(terrace_match* match) { delete match; }

uint32_t terrace_match_tokens(const terrace_match* match) {
  return match == nullptr ? 0 : match->match.matched_tokens;
}
size_t terrace_match_chunk_count(const terrace_match* match) {
  return match == nullptr ? 0 : match->match.chunks.size();
}
int32_t terrace_match_chunk(const terrace_match* match, size_t chunk, terrace_chunk_info* out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(match, "match");
    return valid.ok() ? terrace::ChunkAt(match->match.chunks, chunk, out) : valid;
  });
}

int32_t terrace_acquire(terrace_client* client, const terrace_model* model,
                        const terrace_match* match, uint32_t ttl_ms, uint8_t priority,
                        terrace_lease** out) {
  return terrace_acquire_in(client, model, match, ttl_ms, priority, 0, out);
}
int32_t terrace_acquire_in(terrace_client* client, const terrace_model* model,
                           const terrace_match* match, uint32_t ttl_ms, uint8_t priority,
                           uint8_t memory, terrace_lease** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(model, "model"),
                             NotNull(match, "match"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    if (memory > static_cast<uint8_t>(terrace::LeaseMemory::kDevice)) {
      return absl::InvalidArgumentError(
          absl::StrCat("memory: ", memory, "; expected 0 (host) or 1 (device)"));
    }
    auto lease = client->client->Acquire(
        model->model, match->match, {ttl_ms, priority, static_cast<terrace::LeaseMemory>(memory)});
    if (!lease.ok()) return lease.status();
    *out = new terrace_lease{*std::move(lease)};
    return absl::OkStatus();
  });
}

void terrace_lease_release(terrace_lease* lease) { delete lease; }

size_t terrace_lease_chunk_count(const terrace_lease* lease) {
  return lease == nullptr ? 0 : lease->lease.chunks().size();
}
int32_t terrace_lease_chunk(const terrace_lease* lease, size_t chunk, terrace_chunk_info* out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(lease, "lease");
    return valid.ok() ? terrace::ChunkAt(lease->lease.chunks(), chunk, out) : valid;
  });
}
uint32_t terrace_lease_usable_chunks(const terrace_lease* lease) {
  return lease == nullptr ? 0 : lease->lease.usable_chunks();
}
uint32_t terrace_lease_usable_tokens(const terrace_lease* lease) {
  return lease == nullptr ? 0 : lease->lease.usable_tokens();
}

int32_t terrace_wait_layer(terrace_lease* lease, uint32_t layer, uint32_t timeout_ms) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(lease, "lease");
    return valid.ok() ? lease->lease.WaitLayer(layer, timeout_ms) : valid;
  });
}

int32_t terrace_wait_all(terrace_lease* lease, uint32_t timeout_ms) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(lease, "lease");
    return valid.ok() ? lease->lease.WaitAll(timeout_ms) : valid;
  });
}

uint32_t terrace_ready_parts(const terrace_lease* lease, size_t chunk) {
  return lease == nullptr ? 0 : lease->lease.ready_parts(chunk);
}

int32_t terrace_part(terrace_lease* lease, size_t chunk, uint32_t layer, uint32_t kv,
                     const void** data, size_t* bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(lease, "lease"), CheckLayer(layer), CheckKv(kv),
                             NotNull(data, "data"), NotNull(bytes, "bytes"));
    if (!valid.ok()) return valid;
    const auto part = lease->lease.Part(chunk, layer, static_cast<KvPart>(kv));
    if (!part.ok()) return part.status();
    *data = part->data();
    *bytes = part->size();
    return absl::OkStatus();
  });
}

int32_t terrace_read_rows(terrace_lease* lease, uint32_t layer, uint32_t kv, uint32_t tokens,
                          void* destination, size_t rows, size_t stride_bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(lease, "lease"), CheckLayer(layer), CheckKv(kv));
    if (!valid.ok()) return valid;
    return lease->lease.ReadRows(layer, static_cast<KvPart>(kv), tokens, destination, rows,
                                 stride_bytes);
  });
}

int32_t terrace_renew(terrace_lease* lease, uint32_t ttl_ms) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(lease, "lease");
    return valid.ok() ? lease->lease.Renew(ttl_ms) : valid;
  });
}

int32_t terrace_expired(const terrace_lease* lease) {
  return lease == nullptr || lease->lease.expired() ? 1 : 0;
}
uint64_t terrace_deadline_us(const terrace_lease* lease) {
  return lease == nullptr ? 0 : lease->lease.deadline_us();
}

// --- storing ------------------------------------------------------------------------------------

int32_t terrace_begin_store(terrace_client* client, const terrace_model* model,
                            const uint32_t* tokens, size_t token_count, const void* extra,
                            size_t extra_bytes, uint64_t cost_us, terrace_store** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(model, "model"),
                             NotNullUnlessEmpty(tokens, token_count, "tokens"),
                             NotNullUnlessEmpty(extra, extra_bytes, "extra"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    auto store = client->client->BeginStore(model->model, absl::MakeConstSpan(tokens, token_count),
                                            View(extra, extra_bytes), cost_us);
    if (!store.ok()) return store.status();
    *out = new terrace_store{*std::move(store)};
    return absl::OkStatus();
  });
}

void terrace_store_free(terrace_store* store) { delete store; }

size_t terrace_store_chunk_count(const terrace_store* store) {
  return store == nullptr ? 0 : store->store.chunks().size();
}

int32_t terrace_store_chunk_info(const terrace_store* store, size_t chunk,
                                 terrace_store_chunk_info_t* out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(store, "store"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto chunks = store->store.chunks();
    if (chunk >= chunks.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk: ", chunk, "; there are ", chunks.size()));
    }
    std::memcpy(out->key, chunks[chunk].key.bytes.data(), sizeof out->key);
    out->token_begin = chunks[chunk].token_begin;
    out->token_count = chunks[chunk].token_count;
    out->needed = chunks[chunk].needed ? 1 : 0;
    return absl::OkStatus();
  });
}

int32_t terrace_store_write(terrace_store* store, size_t chunk, uint32_t layer, uint32_t kv,
                            const void* source, size_t bytes) {
  return terrace_store_write_rows(store, chunk, layer, kv, source, 1, bytes, bytes);
}

int32_t terrace_store_write_rows(terrace_store* store, size_t chunk, uint32_t layer, uint32_t kv,
                                 const void* source, size_t rows, size_t row_bytes,
                                 size_t stride_bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(store, "store"), CheckLayer(layer), CheckKv(kv), NotNull(source, "source"));
    if (!valid.ok()) return valid;
    return store->store.WriteRows(chunk, PartIndex(layer, static_cast<KvPart>(kv)), source, rows,
                                  row_bytes, stride_bytes);
  });
}

int32_t terrace_store_buffer(terrace_store* store, size_t chunk, uint32_t layer, uint32_t kv,
                             void** data, size_t* bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(store, "store"), CheckLayer(layer), CheckKv(kv),
                             NotNull(data, "data"), NotNull(bytes, "bytes"));
    if (!valid.ok()) return valid;
    const auto buffer = store->store.Buffer(chunk, PartIndex(layer, static_cast<KvPart>(kv)));
    if (!buffer.ok()) return buffer.status();
    *data = buffer->data();
    *bytes = buffer->size();
    return absl::OkStatus();
  });
}

int32_t terrace_store_commit(terrace_store* store, terrace_commit_report* report) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(store, "store");
    if (!valid.ok()) return valid;
    terrace::CommitReport counts;
    absl::Status committed = store->store.Commit(&counts);
    terrace::Report(counts.why);  // its text, unless committing itself fails and overwrites it
    if (report != nullptr) {
      *report = {counts.stored, counts.already, counts.failed,
                 static_cast<int32_t>(counts.why.code()), counts.stored_bytes};
    }
    return committed;
  });
}

int32_t terrace_store_abort(terrace_store* store) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(store, "store");
    if (valid.ok()) store->store.Abort();
    return valid;
  });
}
