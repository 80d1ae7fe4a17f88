// ObjectInfo as JSON: what `terrace ls --json` and `show --json` print and the C ABI returns. Keys
// are only ever added. Pure functions; any thread.
#pragma once

#include "client/json_writer.h"
#include "transport/messages.h"

namespace terrace {

const char* KindName(ObjectKind kind);
// One JSON object; a parent that is unknown or none is null.
void WriteObject(const ObjectInfo& object, JsonWriter& json);

}  // namespace terrace
