// A Service that records what arrives and answers what the test put in, plus a thread that serves
// it on a real socket.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "transport/connection.h"
#include "transport/loop.h"
#include "transport/server.h"
#include "transport/service.h"

namespace terrace {

ObjectKey TestKey(uint8_t seed);

class FakeService : public Service {
 public:
  FakeService();
  ~FakeService() override;

  // Answers.
  absl::Status failure;  // of every call but OpenSession, when not OK
  absl::Status open_failure;
  Welcome welcome;
  std::vector<ExtentInfo> extents;
  TailMatch match;
  std::vector<ReserveResult> reserve_results;
  std::vector<absl::Status> commit_results;
  AcquireReply acquire_reply;
  std::vector<HintResult> hint_results;
  ResizeReply resize_reply;
  MissRatioCurveReply curve_reply;
  FlushReply flush_reply;
  StatusReply status_reply;
  ListReply list_reply;
  ObjectInfo object;
  VerifyReply verify_reply;
  std::function<void()> on_lookup;  // may throw or sleep

  // Records. Read them between calls, or the atomics at any time.
  PeerCredentials peer;
  ClientHello hello;
  ObjectLayout layout;
  std::optional<KvGeometry> geometry;
  uint32_t layout_id = 0;
  std::vector<ObjectKey> keys;
  ObjectKey parent;
  std::vector<ReserveItem> reserve_items;
  std::vector<CommitItem> commit_items;
  std::vector<HintItem> hints;  // their keys are in hint_keys
  std::vector<std::vector<ObjectKey>> hint_keys;
  ResizeRequest resize_request;
  MissRatioQuery curve_query;
  std::vector<uint64_t> ids;
  AcquireOptions acquire_options;
  uint64_t number = 0;
  bool flag = false;
  std::map<SessionId, int> closed;  // loop thread; read after the host has stopped
  std::atomic<int> open_count{0};
  std::atomic<int> close_count{0};
  std::atomic<int> lookup_count{0};
  std::atomic<int> hint_count{0};

  absl::StatusOr<Welcome> OpenSession(const PeerCredentials& peer,
                                      const ClientHello& hello) override;
  void CloseSession(SessionId session) override;
  absl::StatusOr<uint32_t> RegisterLayout(SessionId session, ObjectLayout layout,
                                          std::optional<KvGeometry> geometry) override;
  absl::Status Lookup(SessionId session, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                      std::vector<ExtentInfo>& extents) override;
  absl::Status Find(SessionId session, uint32_t layout_id, absl::Span<const ObjectKey> keys,
                    std::vector<ExtentInfo>& extents) override;
  absl::StatusOr<TailMatch> MatchTail(SessionId session, uint32_t layout_id,
                                      const ObjectKey& parent,
                                      absl::Span<const ObjectKey> grains) override;
  absl::StatusOr<std::vector<ReserveResult>> Reserve(SessionId session, uint32_t layout_id,
                                                     absl::Span<const ReserveItem> items) override;
  absl::StatusOr<std::vector<absl::Status>> Commit(SessionId session,
                                                   absl::Span<const CommitItem> items) override;
  absl::Status Abort(SessionId session, absl::Span<const uint64_t> reservation_ids) override;
  absl::StatusOr<AcquireReply> Acquire(SessionId session, uint32_t layout_id,
                                       absl::Span<const ObjectKey> keys,
                                       const AcquireOptions& options) override;
  absl::Status Release(SessionId session, absl::Span<const uint64_t> lease_ids) override;
  absl::StatusOr<uint64_t> Renew(SessionId session, uint64_t lease_id, uint32_t ttl_ms) override;
  absl::StatusOr<std::vector<HintResult>> Hint(SessionId session,
                                               absl::Span<const HintItem> items) override;
  absl::StatusOr<FlushReply> Flush(SessionId session) override;
  absl::StatusOr<StatusReply> Status(SessionId session) override;
  absl::StatusOr<ListReply> List(SessionId session, uint64_t cursor, uint32_t limit) override;
  absl::StatusOr<ObjectInfo> Show(SessionId session, const ObjectKey& key) override;
  absl::Status Remove(SessionId session, const ObjectKey& key) override;
  absl::Status Pin(SessionId session, const ObjectKey& key, bool pinned) override;
  absl::StatusOr<VerifyReply> Verify(SessionId session, uint64_t cursor) override;
  absl::StatusOr<ResizeReply> Resize(SessionId session, const ResizeRequest& request) override;
  absl::StatusOr<MissRatioCurveReply> MissRatioCurve(SessionId session,
                                                     const MissRatioQuery& query) override;

 private:
  SessionId next_session_ = 1;
};

// A loop on its own thread with a server of `service`; everything ends in the destructor.
class TestHost {
 public:
  explicit TestHost(Service& service, ServerOptions options = {});
  ~TestHost() { Stop(); }

  void Stop();
  // Runs on the loop thread and waits for it.
  void OnLoop(std::function<void()> work);
  const std::string& socket_path() const { return options_.socket_path; }
  absl::StatusOr<std::unique_ptr<Connection>> Connect(uint32_t timeout_ms = 20000) const;

 private:
  ServerOptions options_;
  Loop* loop_ = nullptr;
  std::thread thread_;
};

// A directory of the test's own, removed at exit.
std::string TestDirectory();
// Waits up to 5 s for `condition`.
bool Eventually(const std::function<bool()>& condition);
// A raw connected socket, closed by the caller.
int RawConnect(const std::string& path);

}  // namespace terrace
