// The part of the C ABI that stores and loads blocks.
#include <cstddef>
#include <vector>

#include "client/terrace_c_support.h"

namespace terrace {
namespace {

static_assert(sizeof(BlockPiece) == sizeof(terrace_block_piece) &&
              offsetof(BlockPiece, part) == offsetof(terrace_block_piece, part) &&
              offsetof(BlockPiece, address) == offsetof(terrace_block_piece, address) &&
              offsetof(BlockPiece, bytes) == offsetof(terrace_block_piece, bytes));
static_assert(TERRACE_UNKNOWN_POSITION == kUnknownPosition);
static_assert(sizeof(ObjectKey) == TERRACE_KEY_BYTES && alignof(ObjectKey) == 1);

absl::Span<const ObjectKey> Keys(const uint8_t* keys, size_t count) {
  return {reinterpret_cast<const ObjectKey*>(keys), count};
}

std::vector<BlockPlace> Places(const uint8_t* parents, const uint32_t* positions, size_t count) {
  if (parents == nullptr && positions == nullptr) return {};
  std::vector<BlockPlace> places(count);
  for (size_t i = 0; i < count; ++i) {
    if (parents != nullptr) places[i].parent = Keys(parents, count)[i];
    if (positions != nullptr) places[i].position = positions[i];
  }
  return places;
}

absl::Span<const BlockPiece> Pieces(const terrace_block_piece* pieces, size_t count) {
  return {reinterpret_cast<const BlockPiece*>(pieces), count};
}

absl::Status CheckCall(const void* client, const void* model, const uint8_t* keys, size_t count) {
  return All(NotNull(client, "client"), NotNull(model, "model"),
             NotNullUnlessEmpty(keys, count, "keys"));
}

}  // namespace
}  // namespace terrace

using terrace::All;
using terrace::CheckCall;
using terrace::Guard;
using terrace::Keys;
using terrace::NotNull;
using terrace::NotNullUnlessEmpty;
using terrace::Pieces;
using terrace::Places;
using terrace::View;

int32_t terrace_register_blocks(terrace_client* client, const void* space, size_t space_bytes,
                                const uint64_t* part_bytes, size_t parts, terrace_model** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(client, "client"), NotNullUnlessEmpty(space, space_bytes, "space"),
            NotNullUnlessEmpty(part_bytes, parts, "part_bytes"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    auto model = client->client->RegisterBlocks(
        {std::string(View(space, space_bytes)), {part_bytes, part_bytes + parts}});
    if (!model.ok()) return model.status();
    *out = new terrace_model{*std::move(model)};
    return absl::OkStatus();
  });
}

int32_t terrace_block_keys(const terrace_client* client, const terrace_model* model,
                           const void* salt, size_t salt_bytes, const void* names,
                           const uint32_t* name_bytes, size_t count, uint8_t* keys) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(CheckCall(client, model, keys, count), NotNullUnlessEmpty(salt, salt_bytes, "salt"),
            NotNullUnlessEmpty(names, count, "names"),
            NotNullUnlessEmpty(name_bytes, count, "name_bytes"));
    if (!valid.ok()) return valid;
    const auto* name = static_cast<const char*>(names);
    for (size_t i = 0; i < count; ++i) {
      const terrace::ObjectKey key = client->client->BlockKey(
          model->model, View(salt, salt_bytes), std::string_view(name, name_bytes[i]));
      std::memcpy(keys + i * TERRACE_KEY_BYTES, key.bytes.data(), TERRACE_KEY_BYTES);
      name += name_bytes[i];
    }
    return absl::OkStatus();
  });
}

int32_t terrace_find_blocks(terrace_client* client, const terrace_model* model, const uint8_t* keys,
                            size_t count, terrace_block_info* out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(CheckCall(client, model, keys, count), NotNullUnlessEmpty(out, count, "out"));
    if (!valid.ok()) return valid;
    const auto found = client->client->FindBlocks(model->model, Keys(keys, count));
    if (!found.ok()) return found.status();
    for (size_t i = 0; i < count; ++i) {
      const terrace::ExtentInfo& info = (*found)[i];
      out[i] = {info.bytes, info.eta_us, static_cast<uint8_t>(info.tier), info.flags, 0};
    }
    return absl::OkStatus();
  });
}

int32_t terrace_acquire_blocks(terrace_client* client, const terrace_model* model,
                               const uint8_t* keys, size_t count, uint32_t ttl_ms, uint8_t priority,
                               terrace_lease** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(CheckCall(client, model, keys, count), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    auto lease = client->client->AcquireBlocks(model->model, Keys(keys, count), {ttl_ms, priority});
    if (!lease.ok()) return lease.status();
    *out = new terrace_lease{*std::move(lease)};
    return absl::OkStatus();
  });
}

int32_t terrace_wait_parts(terrace_lease* lease, uint32_t part, uint32_t timeout_ms) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(lease, "lease");
    return valid.ok() ? lease->lease.WaitParts(part, timeout_ms) : valid;
  });
}

int32_t terrace_block_part(terrace_lease* lease, size_t block, uint32_t part, const void** data,
                           size_t* bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(lease, "lease"), NotNull(data, "data"), NotNull(bytes, "bytes"));
    if (!valid.ok()) return valid;
    const auto held = lease->lease.RawPart(block, part);
    if (!held.ok()) return held.status();
    *data = held->data();
    *bytes = held->size();
    return absl::OkStatus();
  });
}

int32_t terrace_scatter(terrace_lease* lease, const terrace_block_piece* pieces, size_t count,
                        uint32_t threads) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(lease, "lease"), NotNullUnlessEmpty(pieces, count, "pieces"));
    return valid.ok() ? lease->lease.Scatter(Pieces(pieces, count), threads) : valid;
  });
}

int32_t terrace_begin_blocks(terrace_client* client, const terrace_model* model,
                             const uint8_t* keys, size_t count, const uint8_t* parents,
                             const uint32_t* positions, uint64_t cost_us, terrace_store** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(CheckCall(client, model, keys, count), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto places = Places(parents, positions, count);
    auto store = client->client->BeginBlocks(model->model, Keys(keys, count), {cost_us, places});
    if (!store.ok()) return store.status();
    *out = new terrace_store{*std::move(store)};
    return absl::OkStatus();
  });
}

int32_t terrace_store_needed(const terrace_store* store, uint8_t* needed, size_t capacity) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(store, "store"), NotNullUnlessEmpty(needed, capacity, "needed"));
    if (!valid.ok()) return valid;
    const auto chunks = store->store.chunks();
    if (capacity < chunks.size()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("capacity: ", capacity, "; there are ", chunks.size()));
    }
    for (size_t i = 0; i < chunks.size(); ++i) needed[i] = chunks[i].needed ? 1 : 0;
    return absl::OkStatus();
  });
}

int32_t terrace_gather(terrace_store* store, const terrace_block_piece* pieces, size_t count,
                       uint32_t threads) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(store, "store"), NotNullUnlessEmpty(pieces, count, "pieces"));
    return valid.ok() ? store->store.Gather(Pieces(pieces, count), threads) : valid;
  });
}

int32_t terrace_store_block_part(terrace_store* store, size_t block, uint32_t part, void** data,
                                 size_t* bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(store, "store"), NotNull(data, "data"), NotNull(bytes, "bytes"));
    if (!valid.ok()) return valid;
    const auto buffer = store->store.Buffer(block, part);
    if (!buffer.ok()) return buffer.status();
    *data = buffer->data();
    *bytes = buffer->size();
    return absl::OkStatus();
  });
}
