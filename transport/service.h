// What a server serves: implemented by the daemon, called by transport on the loop thread. Every
// method answers at once. Arguments borrowed from a message are valid only during the call.
#pragma once

#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/kv_geometry.h"
#include "transport/messages.h"

namespace terrace {

using SessionId = uint64_t;

class Service {
 public:
  virtual ~Service() = default;

  // First call of a connection. PermissionDenied (uid, tenant), FailedPrecondition (protocol),
  // ResourceExhausted (sessions). Nothing else is called for a connection before it succeeded.
  virtual absl::StatusOr<Welcome> OpenSession(const PeerCredentials& peer,
                                              const ClientHello& hello) = 0;
  // The connection is gone, for whatever reason. Always called once per opened session.
  virtual void CloseSession(SessionId session) = 0;

  // `geometry` is what the layout follows from, when the client said.
  virtual absl::StatusOr<uint32_t> RegisterLayout(SessionId session, ObjectLayout layout,
                                                  std::optional<KvGeometry> geometry) = 0;
  // One ExtentInfo per key of the longest present prefix of `keys`, appended to `extents`.
  virtual absl::Status Lookup(SessionId session, uint32_t layout_id,
                              absl::Span<const ObjectKey> keys,
                              std::vector<ExtentInfo>& extents) = 0;
  // As Lookup, but behind a key that is not there too: one ExtentInfo per key, appended, in order;
  // tier kNone where it is not there. The advice to recompute is about the leading run, for callers
  // whose keys build on each other.
  virtual absl::Status Find(SessionId session, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                            std::vector<ExtentInfo>& extents) = 0;
  // The child of `parent` that shares the most leading grains with `grains`.
  virtual absl::StatusOr<TailMatch> MatchTail(SessionId session, uint32_t layout_id,
                                              const ObjectKey& parent,
                                              absl::Span<const ObjectKey> grains) = 0;
  virtual absl::StatusOr<std::vector<ReserveResult>> Reserve(
      SessionId session, uint32_t layout_id, absl::Span<const ReserveItem> items) = 0;
  virtual absl::StatusOr<std::vector<absl::Status>> Commit(SessionId session,
                                                           absl::Span<const CommitItem> items) = 0;
  virtual absl::Status Abort(SessionId session, absl::Span<const uint64_t> reservation_ids) = 0;
  virtual absl::StatusOr<AcquireReply> Acquire(SessionId session, uint32_t layout_id,
                                               absl::Span<const ObjectKey> keys,
                                               const AcquireOptions& options) = 0;
  virtual absl::Status Release(SessionId session, absl::Span<const uint64_t> lease_ids) = 0;
  // NotFound: the lease is unknown or has run out.
  virtual absl::StatusOr<uint64_t> Renew(SessionId session, uint64_t lease_id, uint32_t ttl_ms) = 0;

  // One result a hint. Never blocks, never promises (see HintItem).
  virtual absl::StatusOr<std::vector<HintResult>> Hint(SessionId session,
                                                       absl::Span<const HintItem> hints) = 0;

  // Operators. Each sees the session's own tenant only, but for Status.
  virtual absl::StatusOr<FlushReply> Flush(SessionId session) = 0;
  virtual absl::StatusOr<StatusReply> Status(SessionId session) = 0;
  virtual absl::StatusOr<ListReply> List(SessionId session, uint64_t cursor, uint32_t limit) = 0;
  virtual absl::StatusOr<ObjectInfo> Show(SessionId session, const ObjectKey& key) = 0;
  virtual absl::Status Remove(SessionId session, const ObjectKey& key) = 0;
  virtual absl::Status Pin(SessionId session, const ObjectKey& key, bool pinned) = 0;
  // Starts or continues a verification of everything the tenant has stored: call with cursor 0,
  // then with next_cursor (busy steps answer the same cursor and 0 checked) until it is 0.
  virtual absl::StatusOr<VerifyReply> Verify(SessionId session, uint64_t cursor) = 0;
  // Starts to change the size of a tier, or of a tenant's part of it; the caller asks again with
  // bytes 0 until it is done. NotFound: tier, tenant. InvalidArgument: a size that is out of range.
  virtual absl::StatusOr<ResizeReply> Resize(SessionId session, const ResizeRequest& request) = 0;
  // What the tier would miss at other sizes. NotFound: tier, tenant.
  virtual absl::StatusOr<MissRatioCurveReply> MissRatioCurve(SessionId session,
                                                             const MissRatioQuery& query) = 0;
};

}  // namespace terrace
