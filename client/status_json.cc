#include "client/status_json.h"

namespace terrace {
namespace {

void WriteTier(const TierStatus& tier, JsonWriter& json) {
  json.BeginObject()
      .Field("name", tier.name)
      .Field("detail", tier.detail)
      .Field("capacity_bytes", tier.capacity_bytes)
      .Field("used_bytes", tier.used_bytes)
      .Field("objects", tier.objects)
      .Field("populated_bytes", tier.populated_bytes)
      .Field("huge_page_bytes", tier.huge_page_bytes)
      .EndObject();
}

void WriteSession(const SessionStatus& session, JsonWriter& json) {
  json.BeginObject()
      .Field("id", session.id)
      .Field("pid", session.pid)
      .Field("uid", session.uid)
      .Field("client_name", session.client_name)
      .Field("tenant", session.tenant)
      .Field("leases", session.leases)
      .Field("reservations", session.reservations)
      .Field("age_ms", session.age_ms)
      .EndObject();
}

}  // namespace

void WriteStatusFields(const StatusReply& status, JsonWriter& json) {
  json.Field("version", status.version)
      .Field("pid", status.pid)
      .Field("uptime_ms", status.uptime_ms)
      .Field("socket_path", status.socket_path)
      .Field("state_dir", status.state_dir)
      .Field("verify", status.verify == VerifyMode::kAlways ? "always" : "crossing");
  json.Key("tiers").BeginArray();
  for (const TierStatus& tier : status.tiers) WriteTier(tier, json);
  json.EndArray();
  json.Key("sessions").BeginArray();
  for (const SessionStatus& session : status.sessions) WriteSession(session, json);
  json.EndArray();
  json.Field("objects", status.objects)
      .Field("leases", status.leases)
      .Field("reservations", status.reservations);
  json.Key("counters").BeginObject();
  for (const auto& [name, value] : status.counters) json.Field(name, value);
  json.EndObject();
}

std::string StatusJson(const StatusReply& status, int indent) {
  JsonWriter json(indent);
  json.BeginObject();
  WriteStatusFields(status, json);
  json.EndObject();
  return json.text();
}

}  // namespace terrace
