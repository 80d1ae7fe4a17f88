// terrace config check, config show, version: what needs no daemon.
#include <cstdio>

#include "client/cli/commands.h"
#include "client/json_writer.h"
#include "config/options.h"
#include "transport/messages.h"

#ifndef TERRACE_VERSION
#error "the build defines TERRACE_VERSION"
#endif

namespace terrace::cli {
namespace {

// Bytes as a number; a share, which has no bytes before it is resolved, as its text "25%".
void WriteSize(std::string_view name, const Size& size, JsonWriter& json) {
  if (size.is_percent()) {
    json.Field(name, FormatSize(size));
  } else {
    json.Field(name, size.bytes);
  }
}

void WriteLimits(const LimitsSection& limits, JsonWriter& json) {
  json.Key("limits").BeginObject();
  json.Field("max_sessions", limits.max_sessions)
      .Field("max_keys_per_call", limits.max_keys_per_call);
  WriteSize("max_message_bytes", limits.max_message_bytes, json);
  json.Field("max_leases_per_session", limits.max_leases_per_session)
      .Field("max_reservations_per_session", limits.max_reservations_per_session)
      .Field("max_layouts", limits.max_layouts)
      .Field("lease_ttl_s", limits.lease_ttl_s)
      .Field("max_lease_ttl_s", limits.max_lease_ttl_s)
      .EndObject();
}

void WriteTiers(const Options& options, JsonWriter& json) {
  json.Key("host").BeginObject();
  WriteSize("capacity", options.host.capacity, json);
  WriteSize("headroom", options.host.headroom, json);
  json.Field("verify", options.host.verify).EndObject();
  json.Key("nvme").BeginObject();
  json.Field("enabled", options.nvme.enabled).Field("directory", options.nvme.directory);
  WriteSize("capacity", options.nvme.capacity, json);
  WriteSize("segment_size", options.nvme.segment_size, json);
  json.Field("queue_depth", options.nvme.queue_depth);
  WriteSize("piece_size", options.nvme.piece_size, json);
  WriteSize("max_pending_writes", options.nvme.max_pending_writes, json);
  json.Field("admission", options.nvme.admission);
  WriteSize("write_budget", options.nvme.write_budget, json);
  json.EndObject();
}

// The same structure and names as the file; salts are secrets and only said to be there.
std::string OptionsJson(const Options& options) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("server")
      .BeginObject()
      .Field("socket_path", options.server.socket_path)
      .Field("state_dir", options.server.state_dir)
      .Field("log_level", options.server.log_level)
      .Field("systemd_notify", options.server.systemd_notify)
      .EndObject();
  WriteLimits(options.limits, json);
  WriteTiers(options, json);
  json.Key("tenants").BeginArray();
  for (const TenantOptions& tenant : options.tenants) {
    json.BeginObject().Field("name", tenant.name).Key("uids").BeginArray();
    for (const uint32_t uid : tenant.uids) json.Int(uid);
    json.EndArray().Field("has_salt", tenant.salt.has_value());
    if (tenant.host_capacity.has_value()) WriteSize("host_capacity", *tenant.host_capacity, json);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

}  // namespace

int RunConfigCheck(const GlobalOptions& options, const std::string& path) {
  auto loaded = LoadOptions(path);
  // A file can be well-formed and still contradict this machine (more tenants' memory than there
  // is): the daemon would refuse it at start, so the check does too.
  if (loaded.ok()) loaded = ResolveOptions(*std::move(loaded));
  if (options.json) {
    JsonWriter json;
    json.BeginObject().Field("file", path).Field("ok", loaded.ok());
    if (!loaded.ok()) json.Field("error", std::string(loaded.status().message()));
    json.EndObject();
    std::printf("%s\n", json.text().c_str());
  } else if (loaded.ok()) {
    std::printf("%s: ok\n", path.c_str());
  }
  if (loaded.ok()) return kOk;
  std::fprintf(stderr, "terrace: %s\n", std::string(loaded.status().message()).c_str());
  return kError;
}

int RunConfigShow(const GlobalOptions& options, const ConfigShowOptions& show) {
  absl::StatusOr<Options> loaded =
      show.path.empty() ? absl::StatusOr<Options>(DefaultOptions()) : LoadOptions(show.path);
  if (loaded.ok() && show.effective) loaded = ResolveOptions(*std::move(loaded));
  if (!loaded.ok()) {
    Fail(options, "config show", loaded.status());
    return kError;
  }
  const std::string text = options.json ? OptionsJson(*loaded) + "\n" : ToToml(*loaded);
  std::fputs(text.c_str(), stdout);
  return kOk;
}

int RunVersion(const GlobalOptions& options) {
  if (options.json) {
    JsonWriter json;
    json.BeginObject()
        .Field("version", TERRACE_VERSION)
        .Field("protocol_major", kProtocolMajor)
        .Field("protocol_minor", kProtocolMinor)
        .EndObject();
    std::printf("%s\n", json.text().c_str());
  } else {
    std::printf("terrace %s (protocol %u.%u)\n", TERRACE_VERSION, kProtocolMajor, kProtocolMinor);
  }
  return kOk;
}

}  // namespace terrace::cli
