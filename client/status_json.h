// StatusReply as JSON: what `terrace status --json` prints and the C ABI returns. Top-level keys:
// version, pid, uptime_ms, socket_path, state_dir, verify, tiers[], sessions[], objects, leases,
// reservations, counters{}. Keys are only ever added. Pure functions; any thread.
#pragma once

#include <string>

#include "client/json_writer.h"
#include "transport/messages.h"

namespace terrace {

// Writes the members into an object that the caller has opened and will end.
void WriteStatusFields(const StatusReply& status, JsonWriter& json);
std::string StatusJson(const StatusReply& status, int indent = 0);

}  // namespace terrace
