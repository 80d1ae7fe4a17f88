// Conversions and checks as in wire_codec.h, of the calls that operators make: objects, status,
// verification, sizes of tiers. Private to transport/ (and its tests and fuzzer). Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "transport/messages.h"
#include "transport/terrace.capnp.h"

namespace terrace {

// Requests, as the server reads them.
absl::Status ReadResize(wire::Session::ResizeParams::Reader params, ResizeRequest& request);
absl::Status ReadCurveQuery(wire::Session::MissRatioCurveParams::Reader params,
                            MissRatioQuery& query);

// Requests, as the client writes them.
void WriteResize(const ResizeRequest& request, wire::Session::ResizeParams::Builder params);
void WriteCurveQuery(const MissRatioQuery& query,
                     wire::Session::MissRatioCurveParams::Builder params);

// Replies, as the server writes them.
void WriteObject(const ObjectInfo& object, wire::ObjectInfo::Builder out);
void WriteVerify(const VerifyReply& reply, wire::VerifyReply::Builder out);
void WriteStatusReply(const StatusReply& reply, wire::StatusReply::Builder out);
void WriteResizeReply(const ResizeReply& reply, wire::ResizeReply::Builder out);
uint64_t CurveWords(const MissRatioCurveReply& reply);
void WriteCurve(const MissRatioCurveReply& reply, wire::MissRatioCurveReply::Builder out);

// Replies, as the client reads them.
absl::Status ReadObject(wire::ObjectInfo::Reader in, ObjectInfo& object);
absl::Status ReadVerify(wire::VerifyReply::Reader in, VerifyReply& reply);
absl::Status ReadStatusReply(wire::StatusReply::Reader in, StatusReply& reply);
absl::Status ReadResizeReply(wire::ResizeReply::Reader in, ResizeReply& reply);
absl::Status ReadCurve(wire::MissRatioCurveReply::Reader in, MissRatioCurveReply& reply);

}  // namespace terrace
