// Conversions and checks as in wire_codec.h, of hints. Private to transport/ (and its tests and
// fuzzer). Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "transport/messages.h"
#include "transport/terrace.capnp.h"
#include "transport/wire_codec.h"

namespace terrace {

// As the server reads them: views on the message. ResourceExhausted: more hints, or more keys in
// all of them, than a call may carry.
absl::Status ReadHints(wire::Session::HintParams::Reader params, const WireLimits& limits,
                       std::vector<HintItem>& items);
// As the client writes them. *Words: room to ask for, in 8-byte words.
uint64_t HintWords(absl::Span<const HintItem> items);
void WriteHints(absl::Span<const HintItem> items, wire::Session::HintParams::Builder params);

void WriteHintResults(absl::Span<const HintResult> results,
                      capnp::List<wire::HintResult>::Builder out);
absl::Status ReadHintResults(capnp::List<wire::HintResult>::Reader in,
                             absl::Span<const HintItem> items, std::vector<HintResult>& results);

}  // namespace terrace
