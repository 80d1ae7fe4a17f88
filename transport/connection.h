// A client's connection: synchronous stubs for transport/service.h. Any thread may call; calls are
// serialised (they are short by contract). After Unavailable the connection is dead for good and
// every later call says so: the owner reconnects.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/kv_geometry.h"
#include "transport/messages.h"

namespace terrace {

struct ConnectionOptions {
  std::string socket_path;
  ClientHello hello;
  uint32_t call_timeout_ms = 5000;  // then Unavailable, and the connection is closed
};

class Connection {
 public:
  // Connects and opens the session. NotFound: no socket at the path. Unavailable: nobody listens.
  // FailedPrecondition: protocol mismatch. PermissionDenied, ResourceExhausted: from the daemon.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(ConnectionOptions options);
  virtual ~Connection() = default;

  // Descriptors inside belong to the caller the first time; take them once.
  virtual Welcome TakeWelcome() = 0;
  // For poll(POLLRDHUP): tells at once that the daemon died.
  virtual int socket_fd() const = 0;
  virtual bool alive() const = 0;

  // `geometry`, when there is one, lets the daemon encode what is stored; the layout is its
  // Layout().
  virtual absl::StatusOr<uint32_t> RegisterLayout(const ObjectLayout& layout,
                                                  const KvGeometry* geometry = nullptr) = 0;
  virtual absl::Status Lookup(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                              std::vector<ExtentInfo>& extents) = 0;
  virtual absl::Status Find(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                            std::vector<ExtentInfo>& extents) = 0;
  virtual absl::StatusOr<TailMatch> MatchTail(uint32_t layout_id, const ObjectKey& parent,
                                              absl::Span<const ObjectKey> grains) = 0;
  virtual absl::StatusOr<std::vector<ReserveResult>> Reserve(
      uint32_t layout_id, absl::Span<const ReserveItem> items) = 0;
  virtual absl::StatusOr<std::vector<absl::Status>> Commit(absl::Span<const CommitItem> items) = 0;
  virtual absl::Status Abort(absl::Span<const uint64_t> reservation_ids) = 0;
  virtual absl::StatusOr<AcquireReply> Acquire(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                               const AcquireOptions& options) = 0;
  // Sent, not waited for: OK says nothing about the leases, which a daemon that fails to release
  // them ends with their time. Calls keep their order.
  virtual absl::Status Release(absl::Span<const uint64_t> lease_ids) = 0;
  virtual absl::StatusOr<uint64_t> Renew(uint64_t lease_id, uint32_t ttl_ms) = 0;
  virtual absl::StatusOr<std::vector<HintResult>> Hint(absl::Span<const HintItem> hints) = 0;
  virtual absl::StatusOr<FlushReply> Flush() = 0;
  virtual absl::StatusOr<StatusReply> Status() = 0;
  virtual absl::StatusOr<ListReply> List(uint64_t cursor, uint32_t limit) = 0;
  virtual absl::StatusOr<ObjectInfo> Show(const ObjectKey& key) = 0;
  virtual absl::Status Remove(const ObjectKey& key) = 0;
  virtual absl::Status Pin(const ObjectKey& key, bool pinned) = 0;
  virtual absl::StatusOr<VerifyReply> Verify(uint64_t cursor) = 0;
  virtual absl::StatusOr<ResizeReply> Resize(const ResizeRequest& request) = 0;
  virtual absl::StatusOr<MissRatioCurveReply> MissRatioCurve(const MissRatioQuery& query) = 0;
};

}  // namespace terrace
