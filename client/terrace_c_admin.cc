// The part of the C ABI that programs other than engines use: opaque objects and operators' calls.
#include "client/object_json.h"
#include "client/status_json.h"
#include "client/terrace_c_support.h"

namespace terrace {
namespace {

absl::Status GiveText(const std::string& text, char** out) {
  *out = strdup(text.c_str());
  return *out != nullptr ? absl::OkStatus() : absl::ResourceExhaustedError("memory");
}

}  // namespace
}  // namespace terrace

using terrace::All;
using terrace::Guard;
using terrace::Key;
using terrace::NotNull;
using terrace::NotNullUnlessEmpty;
using terrace::View;

// --- opaque objects -----------------------------------------------------------------------------

int32_t terrace_opaque_key(const terrace_client* client, const void* name, size_t name_bytes,
                           uint8_t out[TERRACE_KEY_BYTES]) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"),
                             NotNullUnlessEmpty(name, name_bytes, "name"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const terrace::ObjectKey key = client->client->KeyFor(View(name, name_bytes));
    std::memcpy(out, key.bytes.data(), TERRACE_KEY_BYTES);
    return absl::OkStatus();
  });
}

int32_t terrace_put(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES], const void* data,
                    size_t bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(key, "key"),
                             NotNullUnlessEmpty(data, bytes, "data"));
    if (!valid.ok()) return valid;
    return client->client->Put(Key(key),
                               absl::MakeConstSpan(static_cast<const uint8_t*>(data), bytes));
  });
}

int32_t terrace_get(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES], uint32_t ttl_ms,
                    terrace_lease** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(key, "key"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    auto lease = client->client->Get(Key(key), {ttl_ms, 0});
    if (!lease.ok()) return lease.status();
    *out = new terrace_lease{*std::move(lease)};
    return absl::OkStatus();
  });
}

int32_t terrace_lease_bytes(terrace_lease* lease, const void** data, size_t* bytes) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(lease, "lease"), NotNull(data, "data"), NotNull(bytes, "bytes"));
    if (!valid.ok()) return valid;
    const auto part = lease->lease.RawPart(0, 1);
    if (!part.ok()) return part.status();
    *data = part->data();
    *bytes = part->size();
    return absl::OkStatus();
  });
}

// --- operators ----------------------------------------------------------------------------------

int32_t terrace_status_json(terrace_client* client, char** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto status = client->client->Status();
    if (!status.ok()) return status.status();
    return terrace::GiveText(terrace::StatusJson(*status), out);
  });
}

int32_t terrace_ls_json(terrace_client* client, uint64_t cursor, uint32_t limit, char** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto list = client->client->List(cursor, limit);
    if (!list.ok()) return list.status();
    terrace::JsonWriter json;
    json.BeginObject().Key("objects").BeginArray();
    for (const terrace::ObjectInfo& object : list->objects) terrace::WriteObject(object, json);
    json.EndArray().Field("next_cursor", list->next_cursor).EndObject();
    return terrace::GiveText(json.text(), out);
  });
}

int32_t terrace_show_json(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES],
                          char** out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(key, "key"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto object = client->client->Show(Key(key));
    if (!object.ok()) return object.status();
    terrace::JsonWriter json;
    terrace::WriteObject(*object, json);
    return terrace::GiveText(json.text(), out);
  });
}

int32_t terrace_remove(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES]) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(key, "key"));
    return valid.ok() ? client->client->Remove(Key(key)) : valid;
  });
}

int32_t terrace_pin(terrace_client* client, const uint8_t key[TERRACE_KEY_BYTES], int32_t pinned) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(key, "key"));
    return valid.ok() ? client->client->Pin(Key(key), pinned != 0) : valid;
  });
}

int32_t terrace_flush(terrace_client* client, uint32_t timeout_ms) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = NotNull(client, "client");
    return valid.ok() ? client->client->Flush(timeout_ms) : valid;
  });
}

int32_t terrace_verify(terrace_client* client, terrace_verify_report* out) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNull(out, "out"));
    if (!valid.ok()) return valid;
    const auto total = client->client->Verify();
    if (!total.ok()) return total.status();
    *out = {total->checked, total->corrupt, total->skipped, total->bytes};
    return absl::OkStatus();
  });
}
