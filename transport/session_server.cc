#include "transport/session_server.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "transport/hint_codec.h"
#include "transport/operator_codec.h"

namespace terrace {
namespace {

constexpr uint64_t kErrorWords = 64;     // room for a status in a result
constexpr uint64_t kStatusWords = 1024;  // a first segment; more sessions need more
constexpr uint32_t kMaxListObjects = 1024;

class SharedFdServer final : public wire::SharedFd::Server {
 public:
  explicit SharedFdServer(int fd) : fd_(fd) {}
  kj::Maybe<int> getFd() override { return fd_; }

 private:
  const int fd_;  // borrowed from the daemon; used once, when hello answers
};

template <typename Results>
void SetError(Results results, const absl::Status& status) {
  if (!status.ok()) WriteStatus(status, results.initError());
}

class SessionServer final : public wire::Session::Server {
 public:
  explicit SessionServer(std::shared_ptr<SessionState> state) : state_(std::move(state)) {}

  kj::Promise<void> registerLayout(RegisterLayoutContext context) override;
  kj::Promise<void> lookup(LookupContext context) override;
  kj::Promise<void> find(FindContext context) override;
  kj::Promise<void> matchTail(MatchTailContext context) override;
  kj::Promise<void> reserve(ReserveContext context) override;
  kj::Promise<void> commit(CommitContext context) override;
  kj::Promise<void> abort(AbortContext context) override;
  kj::Promise<void> acquire(AcquireContext context) override;
  kj::Promise<void> release(ReleaseContext context) override;
  kj::Promise<void> renew(RenewContext context) override;
  kj::Promise<void> hint(HintContext context) override;
  kj::Promise<void> flush(FlushContext context) override;
  kj::Promise<void> status(StatusContext context) override;
  kj::Promise<void> list(ListContext context) override;
  kj::Promise<void> show(ShowContext context) override;
  kj::Promise<void> remove(RemoveContext context) override;
  kj::Promise<void> pin(PinContext context) override;
  kj::Promise<void> verify(VerifyContext context) override;
  kj::Promise<void> resize(ResizeContext context) override;
  kj::Promise<void> missRatioCurve(MissRatioCurveContext context) override;

 private:
  absl::Status Open() const {
    return state_->closed ? absl::UnavailableError("the session is closed") : absl::OkStatus();
  }
  Service& service() { return *state_->service; }
  SessionId id() const { return state_->id; }
  const WireLimits& limits() const { return state_->limits; }
  // Lookup or Find.
  using LookupMethod = absl::Status (Service::*)(SessionId, uint32_t, absl::Span<const ObjectKey>,
                                                 std::vector<ExtentInfo>&);
  template <typename Context>
  kj::Promise<void> AnswerExtents(Context& context, LookupMethod method);

  const std::shared_ptr<SessionState> state_;
};

// Answers a call with what `call` returns: a Status, or a StatusOr whose value `write` puts into
// the results.
template <typename Context>
kj::Promise<void> Answer(Context& context, const absl::Status& status) {
  SetError(context.getResults(capnp::MessageSize{kErrorWords, 0}), status);
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::registerLayout(RegisterLayoutContext context) {
  ObjectLayout layout;
  std::optional<KvGeometry> geometry;
  absl::Status status = Open();
  if (status.ok()) status = ReadLayout(context.getParams(), layout, geometry);
  if (!status.ok()) return Answer(context, status);
  auto layout_id = service().RegisterLayout(id(), std::move(layout), std::move(geometry));
  if (!layout_id.ok()) return Answer(context, layout_id.status());
  context.getResults(capnp::MessageSize{8, 0}).setLayoutId(*layout_id);
  return kj::READY_NOW;
}

// Calls never nest on the loop thread, so one vector keeps its capacity for all of them.
std::vector<ExtentInfo>& ReusedExtents() {
  thread_local std::vector<ExtentInfo> extents;
  extents.clear();
  return extents;
}

template <typename Context>
kj::Promise<void> SessionServer::AnswerExtents(Context& context, LookupMethod method) {
  std::vector<ExtentInfo>& extents = ReusedExtents();
  absl::Span<const ObjectKey> keys;
  absl::Status status = Open();
  auto params = context.getParams();
  if (status.ok()) status = ReadKeys(params.getKeys(), "keys", limits(), keys);
  if (status.ok()) status = (service().*method)(id(), params.getLayoutId(), keys, extents);
  context.releaseParams();
  if (!status.ok()) return Answer(context, status);
  const uint64_t words = 8 + extents.size() * sizeof(ExtentInfo) / 8;
  context.getResults(capnp::MessageSize{words, 0}).setExtents(ExtentsAsData(extents));
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::lookup(LookupContext context) {
  return AnswerExtents(context, &Service::Lookup);
}

kj::Promise<void> SessionServer::find(FindContext context) {
  return AnswerExtents(context, &Service::Find);
}

kj::Promise<void> SessionServer::matchTail(MatchTailContext context) {
  auto params = context.getParams();
  ObjectKey parent;
  absl::Span<const ObjectKey> grains;
  absl::Status status = Open();
  if (status.ok()) status = ReadOptionalKey(params.getParent(), "parent", parent);
  if (status.ok()) status = ReadKeys(params.getGrains(), "grains", limits(), grains);
  if (!status.ok()) return Answer(context, status);
  auto match = service().MatchTail(id(), params.getLayoutId(), parent, grains);
  if (!match.ok()) return Answer(context, match.status());
  WriteTailMatch(*match, context.getResults(capnp::MessageSize{24, 0}).initMatch());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::reserve(ReserveContext context) {
  thread_local std::vector<ReserveItem> items;
  absl::Status status = Open();
  const uint32_t layout_id = context.getParams().getLayoutId();
  if (status.ok()) status = ReadReserve(context.getParams(), limits(), items);
  context.releaseParams();
  if (!status.ok()) return Answer(context, status);
  auto results = service().Reserve(id(), layout_id, items);
  if (!results.ok()) return Answer(context, results.status());
  auto out = context.getResults(capnp::MessageSize{16 + results->size() * 6, 0});
  WriteReserveResults(*results, out.initResults(results->size()));
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::commit(CommitContext context) {
  std::vector<CommitItem> items;
  absl::Status status = Open();
  if (status.ok()) status = ReadCommit(context.getParams(), limits(), items);
  context.releaseParams();
  if (!status.ok()) return Answer(context, status);
  auto results = service().Commit(id(), items);
  if (!results.ok()) return Answer(context, results.status());
  auto out = context.getResults(capnp::MessageSize{16 + results->size() * 4, 0})
                 .initResults(results->size());
  for (size_t i = 0; i < results->size(); ++i) {
    if (!(*results)[i].ok()) WriteStatus((*results)[i], out[i]);
  }
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::abort(AbortContext context) {
  std::vector<uint64_t> ids;
  absl::Status status = Open();
  if (status.ok()) {
    status = ReadIds(context.getParams().getReservationIds(), "reservation_ids", limits(), ids);
  }
  if (status.ok()) status = service().Abort(id(), ids);
  return Answer(context, status);
}

kj::Promise<void> SessionServer::acquire(AcquireContext context) {
  auto params = context.getParams();
  AcquireOptions options;
  absl::Span<const ObjectKey> keys;
  absl::Status status = Open();
  if (status.ok()) status = ReadAcquireOptions(params, options);
  if (status.ok()) status = ReadKeys(params.getKeys(), "keys", limits(), keys);
  if (!status.ok()) return Answer(context, status);
  auto reply = service().Acquire(id(), params.getLayoutId(), keys, options);
  if (!reply.ok()) return Answer(context, reply.status());
  context.releaseParams();
  WriteAcquire(*reply, context.getResults(capnp::MessageSize{AcquireWords(*reply), 0}).initReply());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::release(ReleaseContext context) {
  std::vector<uint64_t> ids;
  absl::Status status = Open();
  if (status.ok()) status = ReadIds(context.getParams().getLeaseIds(), "lease_ids", limits(), ids);
  if (status.ok()) status = service().Release(id(), ids);
  return Answer(context, status);
}

kj::Promise<void> SessionServer::renew(RenewContext context) {
  if (absl::Status status = Open(); !status.ok()) return Answer(context, status);
  auto deadline =
      service().Renew(id(), context.getParams().getLeaseId(), context.getParams().getTtlMs());
  if (!deadline.ok()) return Answer(context, deadline.status());
  context.getResults(capnp::MessageSize{8, 0}).setDeadlineUs(*deadline);
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::hint(HintContext context) {
  thread_local std::vector<HintItem> hints;  // borrow from the message
  absl::Status status = Open();
  if (status.ok()) status = ReadHints(context.getParams(), limits(), hints);
  if (!status.ok()) return Answer(context, status);
  auto results = service().Hint(id(), hints);
  if (!results.ok()) return Answer(context, results.status());
  auto out = context.getResults(capnp::MessageSize{16 + results->size() * 4, 0});
  WriteHintResults(*results, out.initResults(results->size()));
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::flush(FlushContext context) {
  if (absl::Status status = Open(); !status.ok()) return Answer(context, status);
  auto reply = service().Flush(id());
  if (!reply.ok()) return Answer(context, reply.status());
  auto out = context.getResults(capnp::MessageSize{8, 0});
  out.setPendingObjects(reply->pending_objects);
  out.setPendingBytes(reply->pending_bytes);
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::status(StatusContext context) {
  if (absl::Status status = Open(); !status.ok()) return Answer(context, status);
  auto reply = service().Status(id());
  if (!reply.ok()) return Answer(context, reply.status());
  WriteStatusReply(*reply, context.getResults(capnp::MessageSize{kStatusWords, 0}).initReply());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::list(ListContext context) {
  if (absl::Status status = Open(); !status.ok()) return Answer(context, status);
  const uint32_t limit = std::min(context.getParams().getLimit(), kMaxListObjects);
  auto reply = service().List(id(), context.getParams().getCursor(), limit);
  if (!reply.ok()) return Answer(context, reply.status());
  auto out = context.getResults(capnp::MessageSize{16 + reply->objects.size() * 24, 0});
  out.setNextCursor(reply->next_cursor);
  auto objects = out.initObjects(reply->objects.size());
  for (size_t i = 0; i < reply->objects.size(); ++i) WriteObject(reply->objects[i], objects[i]);
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::show(ShowContext context) {
  ObjectKey key;
  absl::Status status = Open();
  if (status.ok()) status = ReadKey(context.getParams().getKey(), "key", key);
  if (!status.ok()) return Answer(context, status);
  auto object = service().Show(id(), key);
  if (!object.ok()) return Answer(context, object.status());
  WriteObject(*object, context.getResults(capnp::MessageSize{40, 0}).initObject());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::remove(RemoveContext context) {
  ObjectKey key;
  absl::Status status = Open();
  if (status.ok()) status = ReadKey(context.getParams().getKey(), "key", key);
  if (status.ok()) status = service().Remove(id(), key);
  return Answer(context, status);
}

kj::Promise<void> SessionServer::pin(PinContext context) {
  ObjectKey key;
  absl::Status status = Open();
  if (status.ok()) status = ReadKey(context.getParams().getKey(), "key", key);
  if (status.ok()) status = service().Pin(id(), key, context.getParams().getPinned());
  return Answer(context, status);
}

kj::Promise<void> SessionServer::verify(VerifyContext context) {
  if (absl::Status status = Open(); !status.ok()) return Answer(context, status);
  auto reply = service().Verify(id(), context.getParams().getCursor());
  if (!reply.ok()) return Answer(context, reply.status());
  const uint64_t words = 16 + reply->corrupt_keys.size() * 4;
  WriteVerify(*reply, context.getResults(capnp::MessageSize{words, 0}).initReply());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::resize(ResizeContext context) {
  ResizeRequest request;
  absl::Status status = Open();
  if (status.ok()) status = ReadResize(context.getParams(), request);
  if (!status.ok()) return Answer(context, status);
  auto reply = service().Resize(id(), request);
  if (!reply.ok()) return Answer(context, reply.status());
  WriteResizeReply(*reply, context.getResults(capnp::MessageSize{16, 0}).initReply());
  return kj::READY_NOW;
}

kj::Promise<void> SessionServer::missRatioCurve(MissRatioCurveContext context) {
  MissRatioQuery query;
  absl::Status status = Open();
  if (status.ok()) status = ReadCurveQuery(context.getParams(), query);
  if (!status.ok()) return Answer(context, status);
  auto reply = service().MissRatioCurve(id(), query);
  if (!reply.ok()) return Answer(context, reply.status());
  WriteCurve(*reply, context.getResults(capnp::MessageSize{CurveWords(*reply), 0}).initReply());
  return kj::READY_NOW;
}

class TerraceServer final : public wire::Terrace::Server {
 public:
  explicit TerraceServer(std::shared_ptr<SessionState> state) : state_(std::move(state)) {}

  kj::Promise<void> hello(HelloContext context) override {
    auto welcome = Open(context.getParams());
    if (!welcome.ok()) return Answer(context, welcome.status());
    auto results = context.getResults(capnp::MessageSize{128, 5});
    auto out = results.initWelcome();
    WriteWelcome(*welcome, out);
    out.setMaxMessageBytes(state_->max_message_bytes);
    if (welcome->segment_fd >= 0) out.setSegment(kj::heap<SharedFdServer>(welcome->segment_fd));
    if (welcome->board_fd >= 0) out.setBoard(kj::heap<SharedFdServer>(welcome->board_fd));
    if (welcome->ready_event_fd >= 0) {
      out.setReadyEvent(kj::heap<SharedFdServer>(welcome->ready_event_fd));
    }
    if (welcome->device_fd >= 0) {
      out.setDeviceSegment(kj::heap<SharedFdServer>(welcome->device_fd));
    }
    results.setSession(kj::heap<SessionServer>(state_));
    return kj::READY_NOW;
  }

 private:
  absl::StatusOr<Welcome> Open(wire::Terrace::HelloParams::Reader params) {
    ClientHello hello;
    if (absl::Status status = ReadHello(params, hello); !status.ok()) return status;
    if (state_->closed) return absl::UnavailableError("the connection is closed");
    if (state_->opened) return absl::FailedPreconditionError("hello: the session is open already");
    if (hello.protocol_major != kProtocolMajor) {
      return absl::FailedPreconditionError(absl::StrCat("protocol: the client speaks version ",
                                                        hello.protocol_major, ", terraced speaks ",
                                                        kProtocolMajor));
    }
    auto welcome = state_->service->OpenSession(state_->peer, hello);
    if (welcome.ok()) {
      state_->opened = true;
      state_->id = welcome->session_id;
    }
    return welcome;
  }

  const std::shared_ptr<SessionState> state_;
};

}  // namespace

wire::Terrace::Client NewTerraceServer(std::shared_ptr<SessionState> state) {
  return kj::heap<TerraceServer>(std::move(state));
}

}  // namespace terrace
