#include "client/object_json.h"

namespace terrace {

const char* KindName(ObjectKind kind) {
  switch (kind) {
    case ObjectKind::kKv:
      return "kv";
    case ObjectKind::kExpert:
      return "expert";
    case ObjectKind::kDocument:
      return "document";
    case ObjectKind::kOpaque:
      return "opaque";
  }
  return "unknown";
}

void WriteObject(const ObjectInfo& object, JsonWriter& json) {
  json.BeginObject().Field("key", object.key.ToHex());
  json.Key("parent");
  if (object.parent.IsZero()) {
    json.Null();
  } else {
    json.String(object.parent.ToHex());
  }
  json.Field("fingerprint", ObjectKey{object.fingerprint}.ToHex())
      .Field("kind", KindName(object.kind))
      .Field("token_count", object.token_count)
      .Field("grain_count", object.grain_count)
      .Field("cost_us", object.cost_us)
      .Field("part_count", object.part_count)
      .Field("payload_bytes", object.payload_bytes)
      .Field("in_hbm", object.in_hbm)
      .Field("in_host", object.in_host)
      .Field("in_nvme", object.in_nvme)
      .Field("pinned", object.pinned)
      .Field("lease_count", object.lease_count)
      .EndObject();
}

}  // namespace terrace
