// Conversions between transport/messages.h and the Cap'n Proto schema, and every check of what
// arrives: sessions, stores and loads here, operators' calls in operator_codec.h, hints in
// hint_codec.h. Private to transport/ (and its tests and fuzzer). Pure functions.
//
// Read* of requests answer InvalidArgument naming the field, or ResourceExhausted when a list
// exceeds the limit; Read* of replies answer Internal. A malformed message may also throw
// kj::Exception from an accessor; the RPC layer turns that into an error of that one call.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "config/kv_geometry.h"
#include "transport/messages.h"
#include "transport/terrace.capnp.h"

namespace terrace {

struct WireLimits {
  uint32_t max_keys_per_call = 4096;
};

inline constexpr size_t kMaxNameBytes = 256;  // client and tenant names

// The answer to a list of `count` that is longer than a call may carry.
absl::Status TooMany(const char* field, uint64_t count, const WireLimits& limits);

// Status <-> Error. A status outside absl's codes reads as Unknown.
void WriteStatus(const absl::Status& status, wire::Error::Builder error);
absl::Status ReadStatus(wire::Error::Reader error);

// Views on a message: valid as long as it is.
capnp::Data::Reader KeysAsData(absl::Span<const ObjectKey> keys);
capnp::Data::Reader KeyAsData(const ObjectKey& key);  // empty for the zero key
absl::Status ReadKeys(capnp::Data::Reader data, const char* field, const WireLimits& limits,
                      absl::Span<const ObjectKey>& keys);
absl::Status ReadKey(capnp::Data::Reader data, const char* field, ObjectKey& key);
absl::Status ReadOptionalKey(capnp::Data::Reader data, const char* field, ObjectKey& key);
capnp::Data::Reader ExtentsAsData(absl::Span<const ExtentInfo> extents);

// Requests, as the server reads them.
absl::Status ReadHello(wire::Terrace::HelloParams::Reader params, ClientHello& hello);
absl::Status ReadLayout(wire::Session::RegisterLayoutParams::Reader params, ObjectLayout& layout,
                        std::optional<KvGeometry>& geometry);
absl::Status ReadReserve(wire::Session::ReserveParams::Reader params, const WireLimits& limits,
                         std::vector<ReserveItem>& items);
absl::Status ReadCommit(wire::Session::CommitParams::Reader params, const WireLimits& limits,
                        std::vector<CommitItem>& items);
absl::Status ReadIds(capnp::List<uint64_t>::Reader list, const char* field,
                     const WireLimits& limits, std::vector<uint64_t>& ids);
absl::Status ReadAcquireOptions(wire::Session::AcquireParams::Reader params,
                                AcquireOptions& options);

// Requests, as the client writes them. *Words: room to ask for, in 8-byte words.
void WriteHello(const ClientHello& hello, wire::Terrace::HelloParams::Builder params);
// `geometry` may be null.
void WriteLayout(const ObjectLayout& layout, const KvGeometry* geometry,
                 wire::Session::RegisterLayoutParams::Builder params);
uint64_t LayoutWords(const ObjectLayout& layout, const KvGeometry* geometry);
uint64_t ReserveWords(absl::Span<const ReserveItem> items);
void WriteReserve(absl::Span<const ReserveItem> items,
                  wire::Session::ReserveParams::Builder params);
uint64_t CommitWords(absl::Span<const CommitItem> items);
void WriteCommit(absl::Span<const CommitItem> items, wire::Session::CommitParams::Builder params);

// Replies, as the server writes them. The descriptors of Welcome are the caller's affair.
void WriteWelcome(const Welcome& welcome, wire::Welcome::Builder out);
void WriteTailMatch(const TailMatch& match, wire::TailMatch::Builder out);
void WriteReserveResults(absl::Span<const ReserveResult> results,
                         capnp::List<wire::ReserveResult>::Builder out);
uint64_t AcquireWords(const AcquireReply& reply);
void WriteAcquire(const AcquireReply& reply, wire::AcquireReply::Builder out);

// Replies, as the client reads them.
absl::Status ReadWelcome(wire::Welcome::Reader in, Welcome& welcome);
absl::Status ReadExtents(capnp::Data::Reader data, size_t max_count,
                         std::vector<ExtentInfo>& extents);  // appends
absl::Status ReadTailMatch(wire::TailMatch::Reader in, TailMatch& match);
absl::Status ReadReserveResults(capnp::List<wire::ReserveResult>::Reader in, size_t count,
                                std::vector<ReserveResult>& results);
absl::Status ReadAcquire(wire::AcquireReply::Reader in, size_t count, AcquireReply& reply);

}  // namespace terrace
