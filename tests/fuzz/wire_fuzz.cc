// Bytes from a client: the framing of the stream, then every conversion the server runs on the
// parameters of a call. The first byte chooses which parameters the message is taken for.
#include <capnp/message.h>
#include <kj/exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "transport/hint_codec.h"
#include "transport/message_buffer.h"
#include "transport/operator_codec.h"
#include "transport/wire_codec.h"

namespace terrace {
namespace {

constexpr WireLimits kLimits{64};
using Session = wire::Session;

void Check(bool holds) {
  if (!holds) abort();
}

void ReadCommitAs(capnp::MessageReader& message) {
  std::vector<CommitItem> items;
  if (!ReadCommit(message.getRoot<Session::CommitParams>(), kLimits, items).ok()) return;
  for (const CommitItem& item : items) Check(item.part_crcs.size() <= kMaxParts);
}

void ReadHintsAs(capnp::MessageReader& message) {
  std::vector<HintItem> hints;
  if (!ReadHints(message.getRoot<Session::HintParams>(), kLimits, hints).ok()) return;
  size_t total = 0;
  for (const HintItem& hint : hints) {
    Check(hint.confidence >= 0 && hint.confidence <= 1);
    Check(hint.eta_us <= kMaxHintAheadUs && hint.deadline_us <= kMaxHintAheadUs);
    for (const ObjectKey& each : hint.keys) (void)each.Head64();
    total += hint.keys.size();
  }
  Check(hints.size() <= kLimits.max_keys_per_call && total <= kLimits.max_keys_per_call);
}

void ReadSizesAs(capnp::MessageReader& message) {
  ResizeRequest request;
  if (ReadResize(message.getRoot<Session::ResizeParams>(), request).ok()) {
    Check(request.tier.size() <= kMaxNameBytes && request.tenant.size() <= kMaxNameBytes);
  }
  MissRatioQuery query;
  (void)ReadCurveQuery(message.getRoot<Session::MissRatioCurveParams>(), query);
}

// Requests: the daemon reads them from clients.
void ReadRequestAs(uint8_t which, capnp::MessageReader& message) {
  absl::Span<const ObjectKey> keys;
  ObjectKey key;
  switch (which) {
    case 0: {
      ClientHello hello;
      const absl::Status status = ReadHello(message.getRoot<wire::Terrace::HelloParams>(), hello);
      Check(!status.ok() || hello.tenant.size() <= kMaxNameBytes);
      break;
    }
    case 1: {
      ObjectLayout layout;
      std::optional<KvGeometry> geometry;
      const absl::Status status =
          ReadLayout(message.getRoot<Session::RegisterLayoutParams>(), layout, geometry);
      Check(!status.ok() || layout.Validate().ok());
      Check(!status.ok() || !geometry.has_value() || geometry->Validate().ok());
      break;
    }
    case 2: {
      auto params = message.getRoot<Session::LookupParams>();
      if (ReadKeys(params.getKeys(), "keys", kLimits, keys).ok()) {
        Check(keys.size() <= kLimits.max_keys_per_call);
        for (const ObjectKey& each : keys) (void)each.Head64();
      }
      break;
    }
    case 3: {
      auto params = message.getRoot<Session::MatchTailParams>();
      (void)ReadOptionalKey(params.getParent(), "parent", key);
      (void)ReadKeys(params.getGrains(), "grains", kLimits, keys);
      break;
    }
    case 4: {
      std::vector<ReserveItem> items;
      const absl::Status status =
          ReadReserve(message.getRoot<Session::ReserveParams>(), kLimits, items);
      Check(!status.ok() || items.size() <= kLimits.max_keys_per_call);
      break;
    }
    case 5:
      ReadCommitAs(message);
      break;
    case 6: {
      std::vector<uint64_t> ids;
      (void)ReadIds(message.getRoot<Session::AbortParams>().getReservationIds(), "ids", kLimits,
                    ids);
      Check(ids.size() <= kLimits.max_keys_per_call);
      break;
    }
    case 7: {
      AcquireOptions options;
      auto params = message.getRoot<Session::AcquireParams>();
      (void)ReadAcquireOptions(params, options);
      (void)ReadKeys(params.getKeys(), "keys", kLimits, keys);
      break;
    }
    case 8:
      ReadHintsAs(message);
      break;
    case 9:
      ReadSizesAs(message);
      break;
    default:
      (void)ReadKey(message.getRoot<Session::ShowParams>().getKey(), "key", key);
      break;
  }
}

// Replies: the client reads them from the daemon, and must not trust them either.
void ReadReplyAs(uint8_t which, capnp::MessageReader& message) {
  switch (which) {
    case 0: {
      Welcome welcome;
      (void)ReadWelcome(message.getRoot<wire::Welcome>(), welcome);
      AcquireReply reply;
      (void)ReadAcquire(message.getRoot<wire::AcquireReply>(), 3, reply);
      break;
    }
    case 1: {
      StatusReply reply;
      (void)ReadStatusReply(message.getRoot<wire::StatusReply>(), reply);
      break;
    }
    case 2: {
      MissRatioCurveReply reply;
      if (ReadCurve(message.getRoot<wire::MissRatioCurveReply>(), reply).ok()) {
        for (const MissRatioPoint& point : reply.points) Check(point.by_bytes <= 1);
      }
      break;
    }
    case 3: {
      const HintItem hint;
      std::vector<HintResult> results;
      (void)ReadHintResults(message.getRoot<Session::HintResults>().getResults(), {&hint, 1},
                            results);
      ResizeReply reply;
      (void)ReadResizeReply(message.getRoot<wire::ResizeReply>(), reply);
      break;
    }
    default: {
      ObjectInfo object;
      (void)ReadObject(message.getRoot<wire::ObjectInfo>(), object);
      VerifyReply reply;
      (void)ReadVerify(message.getRoot<wire::VerifyReply>(), reply);
      TailMatch match;
      (void)ReadTailMatch(message.getRoot<wire::TailMatch>(), match);
      break;
    }
  }
}

void ReadAs(uint8_t which, capnp::MessageReader& message) {
  constexpr uint8_t kRequests = 11, kReplies = 5;
  which %= kRequests + kReplies;
  if (which < kRequests) {
    ReadRequestAs(which, message);
  } else {
    ReadReplyAs(which - kRequests, message);
  }
}

// The second byte chooses the size of the pieces in which the stream arrives.
void ReadStream(const uint8_t* data, size_t size) {
  if (size < 2) return;
  const uint8_t which = data[0];
  const size_t piece = size_t{1} + data[1];
  capnp::ReaderOptions options;
  options.traversalLimitInWords = 1 << 16;
  MessageBuffer buffer(options.traversalLimitInWords * sizeof(capnp::word));
  for (size_t at = 2; at < size;) {
    auto space = buffer.Space();
    const size_t n = std::min({piece, size - at, space.size()});
    std::memcpy(space.begin(), data + at, n);
    buffer.Added(n);
    at += n;
    for (bool more = true; more;) {
      more = false;
      KJ_IF_MAYBE (message, buffer.Pop(options)) {
        more = true;
        // A malformed call fails alone; the stream goes on.
        kj::runCatchingExceptions([&] { ReadAs(which, **message); });
      }
    }
  }
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Bad framing throws, which ends the connection.
  kj::runCatchingExceptions([&] { terrace::ReadStream(data, size); });
  return 0;
}
