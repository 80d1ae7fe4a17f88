#include "transport/connection.h"

#include <capnp/rpc-twoparty.h>
#include <fcntl.h>
#include <kj/async.h>
#include <kj/debug.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "transport/client_stream.h"
#include "transport/hint_codec.h"
#include "transport/operator_codec.h"
#include "transport/wire_codec.h"

namespace terrace {
namespace {

constexpr unsigned kMaxFdsPerMessage = 4;
// The daemon is trusted, but its replies are bounded all the same.
constexpr uint64_t kMaxReplyBytes = uint64_t{256} << 20;

capnp::ReaderOptions ReplyOptions() {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = kMaxReplyBytes / sizeof(capnp::word);
  return options;
}

// Everything that lives on the connection's event loop. Built, used and destroyed inside a
// kj::WaitScope under the connection's mutex; which thread holds it does not matter, as long as
// that thread is not inside another KJ event loop.
struct Rpc {
  explicit Rpc(ClientStream& stream)
      : network(stream, kMaxFdsPerMessage, capnp::rpc::twoparty::Side::CLIENT, ReplyOptions()),
        system(capnp::makeRpcClient(network)) {}

  capnp::TwoPartyVatNetwork network;
  capnp::RpcSystem<capnp::rpc::twoparty::VatId> system;
  kj::Maybe<wire::Session::Client> session;
};

class ConnectionImpl final : public Connection {
 public:
  ConnectionImpl(kj::AutoCloseFd&& fd, uint32_t timeout_ms)
      : fd_(kj::mv(fd)), stream_(fd_, timeout_ms, kMaxReplyBytes), loop_(stream_) {}
  ~ConnectionImpl() noexcept override;

  absl::Status Hello(const ClientHello& hello);

  Welcome TakeWelcome() override;
  int socket_fd() const override { return fd_; }
  bool alive() const override;

  absl::StatusOr<uint32_t> RegisterLayout(const ObjectLayout& layout,
                                          const KvGeometry* geometry) override;
  absl::Status Lookup(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                      std::vector<ExtentInfo>& extents) override;
  absl::Status Find(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                    std::vector<ExtentInfo>& extents) override;
  absl::StatusOr<TailMatch> MatchTail(uint32_t layout_id, const ObjectKey& parent,
                                      absl::Span<const ObjectKey> grains) override;
  absl::StatusOr<std::vector<ReserveResult>> Reserve(uint32_t layout_id,
                                                     absl::Span<const ReserveItem> items) override;
  absl::StatusOr<std::vector<absl::Status>> Commit(absl::Span<const CommitItem> items) override;
  absl::Status Abort(absl::Span<const uint64_t> reservation_ids) override;
  absl::StatusOr<AcquireReply> Acquire(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                       const AcquireOptions& options) override;
  absl::Status Release(absl::Span<const uint64_t> lease_ids) override;
  absl::StatusOr<uint64_t> Renew(uint64_t lease_id, uint32_t ttl_ms) override;
  absl::StatusOr<std::vector<HintResult>> Hint(absl::Span<const HintItem> hints) override;
  absl::StatusOr<FlushReply> Flush() override;
  absl::StatusOr<StatusReply> Status() override;
  absl::StatusOr<ListReply> List(uint64_t cursor, uint32_t limit) override;
  absl::StatusOr<ObjectInfo> Show(const ObjectKey& key) override;
  absl::Status Remove(const ObjectKey& key) override;
  absl::Status Pin(const ObjectKey& key, bool pinned) override;
  absl::StatusOr<VerifyReply> Verify(uint64_t cursor) override;
  absl::StatusOr<ResizeReply> Resize(const ResizeRequest& request) override;
  absl::StatusOr<MissRatioCurveReply> MissRatioCurve(const MissRatioQuery& query) override;

 private:
  using Session = wire::Session::Client;

  // Enters the loop on this thread and runs `body`; exceptions become statuses.
  absl::Status Enter(absl::FunctionRef<absl::Status(kj::WaitScope&)> body);
  absl::Status FromException(const kj::Exception& exception);
  void Die(const absl::Status& why);

  // One call: `words` bounds the request's size, `start` makes the request, `fill` sets its
  // parameters, `read` takes the results of a call that succeeded.
  template <typename Start, typename Fill, typename Read>
  absl::Status Call(uint64_t words, Start start, Fill fill, Read read);
  absl::Status TakeFds(wire::Welcome::Reader in, kj::WaitScope& scope);

  const kj::AutoCloseFd fd_;
  std::mutex mutex_;  // guards everything below but dead_
  std::atomic<bool> dead_{false};
  absl::Status death_;
  ClientStream stream_;
  kj::EventLoop loop_;
  std::unique_ptr<Rpc> rpc_;
  Welcome welcome_;
  uint64_t max_message_bytes_ = 64 << 10;  // until the daemon says
};

ConnectionImpl::~ConnectionImpl() noexcept {
  kj::runCatchingExceptions([&] {
    kj::WaitScope scope(loop_);
    rpc_.reset();
  });
  for (int fd :
       {welcome_.segment_fd, welcome_.board_fd, welcome_.ready_event_fd, welcome_.device_fd}) {
    if (fd >= 0) close(fd);
  }
}

absl::Status ConnectionImpl::Enter(absl::FunctionRef<absl::Status(kj::WaitScope&)> body) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (dead_.load(std::memory_order_relaxed)) return death_;
  absl::Status status;
  KJ_IF_MAYBE (exception, kj::runCatchingExceptions([&] {
                 kj::WaitScope scope(loop_);
                 stream_.StartCall();
                 status = body(scope);
               })) {
    status = FromException(*exception);
  }
  return status;
}

absl::Status ConnectionImpl::FromException(const kj::Exception& exception) {
  const std::string text = exception.getDescription().cStr();
  switch (exception.getType()) {
    case kj::Exception::Type::DISCONNECTED: {
      const absl::Status status =
          stream_.end_status().ok()
              ? absl::UnavailableError(absl::StrCat("connection to terraced: ", text))
              : stream_.end_status();
      Die(status);
      return status;
    }
    case kj::Exception::Type::OVERLOADED:
      return absl::ResourceExhaustedError(text);
    case kj::Exception::Type::UNIMPLEMENTED:
      return absl::UnimplementedError(text);
    default:
      return absl::InternalError(text);
  }
}

void ConnectionImpl::Die(const absl::Status& why) {
  death_ = absl::UnavailableError(why.message());
  dead_.store(true);
  shutdown(fd_, SHUT_RDWR);  // the descriptor stays ours: somebody may be polling it
}

bool ConnectionImpl::alive() const {
  if (dead_.load()) return false;
  pollfd poll_fd{fd_, POLLRDHUP, 0};
  return poll(&poll_fd, 1, 0) == 0;
}

Welcome ConnectionImpl::TakeWelcome() {
  std::lock_guard<std::mutex> lock(mutex_);
  Welcome taken = welcome_;
  welcome_.segment_fd = welcome_.board_fd = welcome_.ready_event_fd = welcome_.device_fd = -1;
  return taken;
}

absl::Status ConnectionImpl::Hello(const ClientHello& hello) {
  return Enter([&](kj::WaitScope& scope) -> absl::Status {
    rpc_ = std::make_unique<Rpc>(stream_);
    capnp::word scratch[4]{};
    capnp::MallocMessageBuilder vat(scratch);
    auto vat_id = vat.initRoot<capnp::rpc::twoparty::VatId>();
    vat_id.setSide(capnp::rpc::twoparty::Side::SERVER);
    auto terrace = rpc_->system.bootstrap(vat_id).castAs<wire::Terrace>();
    auto request = terrace.helloRequest();
    WriteHello(hello, request);
    auto response = request.send().wait(scope);
    if (absl::Status status = ReadStatus(response.getError()); !status.ok()) return status;
    auto in = response.getWelcome();
    if (absl::Status status = ReadWelcome(in, welcome_); !status.ok()) return status;
    if (welcome_.protocol_major != kProtocolMajor) {
      return absl::FailedPreconditionError(absl::StrCat("protocol: terraced speaks version ",
                                                        welcome_.protocol_major, ", this client ",
                                                        kProtocolMajor));
    }
    max_message_bytes_ = in.getMaxMessageBytes();
    rpc_->session = response.getSession();
    return TakeFds(in, scope);
  });
}

absl::Status ConnectionImpl::TakeFds(wire::Welcome::Reader in, kj::WaitScope& scope) {
  auto take = [&scope](wire::SharedFd::Client cap, int& out) {
    const int fd = cap.getFd().wait(scope).orDefault(-1);
    if (fd >= 0) out = fcntl(fd, F_DUPFD_CLOEXEC, 0);  // the capability keeps its own
    return out >= 0;
  };
  if ((in.hasSegment() && !take(in.getSegment(), welcome_.segment_fd)) ||
      (in.hasBoard() && !take(in.getBoard(), welcome_.board_fd)) ||
      (in.hasReadyEvent() && !take(in.getReadyEvent(), welcome_.ready_event_fd)) ||
      (in.hasDeviceSegment() && !take(in.getDeviceSegment(), welcome_.device_fd))) {
    return absl::InternalError("hello: a descriptor did not arrive");
  }
  return absl::OkStatus();
}

template <typename Start, typename Fill, typename Read>
absl::Status ConnectionImpl::Call(uint64_t words, Start start, Fill fill, Read read) {
  return Enter([&](kj::WaitScope& scope) -> absl::Status {
    const uint64_t bytes = words * sizeof(capnp::word);
    if (bytes >= max_message_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "request of ", bytes, " bytes exceeds limits.max_message_bytes = ", max_message_bytes_));
    }
    auto request = start(KJ_ASSERT_NONNULL(rpc_->session), capnp::MessageSize{words, 0});
    fill(request);
    auto response = request.send().wait(scope);
    if (response.hasError()) {
      if (absl::Status status = ReadStatus(response.getError()); !status.ok()) return status;
    }
    return read(response);
  });
}

// The request constructor of one method, as a function object for Call().
#define TERRACE_METHOD(name) \
  [](Session& session, capnp::MessageSize size) { return session.name##Request(size); }

constexpr uint64_t kSmallWords = 16;
uint64_t DataWords(size_t bytes) { return kSmallWords + bytes / sizeof(capnp::word); }

template <typename Response>
absl::Status Nothing(Response&) {
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> ConnectionImpl::RegisterLayout(const ObjectLayout& layout,
                                                        const KvGeometry* geometry) {
  uint32_t layout_id = 0;
  absl::Status status = Call(
      LayoutWords(layout, geometry), TERRACE_METHOD(registerLayout),
      [&](auto& request) { WriteLayout(layout, geometry, request); },
      [&](auto& response) {
        layout_id = response.getLayoutId();
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return layout_id;
}

absl::Status ConnectionImpl::Lookup(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                    std::vector<ExtentInfo>& extents) {
  return Call(
      DataWords(keys.size() * sizeof(ObjectKey)), TERRACE_METHOD(lookup),
      [&](auto& request) {
        request.setLayoutId(layout_id);
        request.setKeys(KeysAsData(keys));
      },
      [&](auto& response) { return ReadExtents(response.getExtents(), keys.size(), extents); });
}

absl::Status ConnectionImpl::Find(uint32_t layout_id, absl::Span<const ObjectKey> keys,
                                  std::vector<ExtentInfo>& extents) {
  return Call(
      DataWords(keys.size() * sizeof(ObjectKey)), TERRACE_METHOD(find),
      [&](auto& request) {
        request.setLayoutId(layout_id);
        request.setKeys(KeysAsData(keys));
      },
      [&](auto& response) -> absl::Status {
        const size_t before = extents.size();
        absl::Status read = ReadExtents(response.getExtents(), keys.size(), extents);
        if (!read.ok() || extents.size() - before == keys.size()) return read;
        const size_t answered = extents.size() - before;
        extents.resize(before);
        return absl::InternalError(
            absl::StrCat("find: ", answered, " answers to ", keys.size(), " keys"));
      });
}

absl::StatusOr<TailMatch> ConnectionImpl::MatchTail(uint32_t layout_id, const ObjectKey& parent,
                                                    absl::Span<const ObjectKey> grains) {
  TailMatch match;
  absl::Status status = Call(
      DataWords((grains.size() + 1) * sizeof(ObjectKey)), TERRACE_METHOD(matchTail),
      [&](auto& request) {
        request.setLayoutId(layout_id);
        request.setParent(KeyAsData(parent));
        request.setGrains(KeysAsData(grains));
      },
      [&](auto& response) { return ReadTailMatch(response.getMatch(), match); });
  if (!status.ok()) return status;
  return match;
}

absl::StatusOr<std::vector<ReserveResult>> ConnectionImpl::Reserve(
    uint32_t layout_id, absl::Span<const ReserveItem> items) {
  std::vector<ReserveResult> results;
  absl::Status status = Call(
      ReserveWords(items), TERRACE_METHOD(reserve),
      [&](auto& request) {
        request.setLayoutId(layout_id);
        WriteReserve(items, request);
      },
      [&](auto& response) {
        return ReadReserveResults(response.getResults(), items.size(), results);
      });
  if (!status.ok()) return status;
  return results;
}

absl::StatusOr<std::vector<absl::Status>> ConnectionImpl::Commit(
    absl::Span<const CommitItem> items) {
  std::vector<absl::Status> results;
  absl::Status status = Call(
      CommitWords(items), TERRACE_METHOD(commit),
      [&](auto& request) { WriteCommit(items, request); },
      [&](auto& response) -> absl::Status {
        const auto list = response.getResults();
        if (list.size() != items.size()) return absl::InternalError("commit: results are missing");
        for (const auto error : list) results.push_back(ReadStatus(error));
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return results;
}

absl::Status ConnectionImpl::Abort(absl::Span<const uint64_t> reservation_ids) {
  return Call(
      DataWords(reservation_ids.size() * 8), TERRACE_METHOD(abort),
      [&](auto& request) {
        auto list = request.initReservationIds(reservation_ids.size());
        for (size_t i = 0; i < reservation_ids.size(); ++i) list.set(i, reservation_ids[i]);
      },
      [](auto& response) { return Nothing(response); });
}

absl::StatusOr<AcquireReply> ConnectionImpl::Acquire(uint32_t layout_id,
                                                     absl::Span<const ObjectKey> keys,
                                                     const AcquireOptions& options) {
  AcquireReply reply;
  absl::Status status = Call(
      DataWords(keys.size() * sizeof(ObjectKey)), TERRACE_METHOD(acquire),
      [&](auto& request) {
        request.setLayoutId(layout_id);
        request.setKeys(KeysAsData(keys));
        request.setTtlMs(options.ttl_ms);
        request.setPriority(options.priority);
        request.setMemory(static_cast<uint8_t>(options.memory));
      },
      [&](auto& response) { return ReadAcquire(response.getReply(), keys.size(), reply); });
  if (!status.ok()) return status;
  return reply;
}

// Nobody needs the answer, and to wait for it costs as much as an acquire: the next call takes it
// in.
absl::Status ConnectionImpl::Release(absl::Span<const uint64_t> lease_ids) {
  return Enter([&](kj::WaitScope& scope) {
    const uint64_t words = DataWords(lease_ids.size() * 8);
    auto request = KJ_ASSERT_NONNULL(rpc_->session).releaseRequest(capnp::MessageSize{words, 0});
    auto list = request.initLeaseIds(lease_ids.size());
    for (size_t i = 0; i < lease_ids.size(); ++i) list.set(i, lease_ids[i]);
    request.send().ignoreResult().detach([](kj::Exception&&) {});
    scope.poll();
    return absl::OkStatus();
  });
}

absl::StatusOr<uint64_t> ConnectionImpl::Renew(uint64_t lease_id, uint32_t ttl_ms) {
  uint64_t deadline_us = 0;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(renew),
      [&](auto& request) {
        request.setLeaseId(lease_id);
        request.setTtlMs(ttl_ms);
      },
      [&](auto& response) {
        deadline_us = response.getDeadlineUs();
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return deadline_us;
}

absl::StatusOr<std::vector<HintResult>> ConnectionImpl::Hint(absl::Span<const HintItem> hints) {
  std::vector<HintResult> results;
  absl::Status status = Call(
      HintWords(hints), TERRACE_METHOD(hint), [&](auto& request) { WriteHints(hints, request); },
      [&](auto& response) { return ReadHintResults(response.getResults(), hints, results); });
  if (!status.ok()) return status;
  return results;
}

absl::StatusOr<FlushReply> ConnectionImpl::Flush() {
  FlushReply reply;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(flush), [](auto&) {},
      [&](auto& response) {
        reply.pending_objects = response.getPendingObjects();
        reply.pending_bytes = response.getPendingBytes();
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<StatusReply> ConnectionImpl::Status() {
  StatusReply reply;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(status), [](auto&) {},
      [&](auto& response) { return ReadStatusReply(response.getReply(), reply); });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<ListReply> ConnectionImpl::List(uint64_t cursor, uint32_t limit) {
  ListReply reply;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(list),
      [&](auto& request) {
        request.setCursor(cursor);
        request.setLimit(limit);
      },
      [&](auto& response) {
        reply.next_cursor = response.getNextCursor();
        for (const auto object : response.getObjects()) {
          absl::Status read = ReadObject(object, reply.objects.emplace_back());
          if (!read.ok()) return read;
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<ObjectInfo> ConnectionImpl::Show(const ObjectKey& key) {
  ObjectInfo object;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(show),
      [&](auto& request) { request.setKey(KeysAsData(absl::MakeConstSpan(&key, 1))); },
      [&](auto& response) { return ReadObject(response.getObject(), object); });
  if (!status.ok()) return status;
  return object;
}

absl::Status ConnectionImpl::Remove(const ObjectKey& key) {
  return Call(
      kSmallWords, TERRACE_METHOD(remove),
      [&](auto& request) { request.setKey(KeysAsData(absl::MakeConstSpan(&key, 1))); },
      [](auto& response) { return Nothing(response); });
}

absl::Status ConnectionImpl::Pin(const ObjectKey& key, bool pinned) {
  return Call(
      kSmallWords, TERRACE_METHOD(pin),
      [&](auto& request) {
        request.setKey(KeysAsData(absl::MakeConstSpan(&key, 1)));
        request.setPinned(pinned);
      },
      [](auto& response) { return Nothing(response); });
}

absl::StatusOr<VerifyReply> ConnectionImpl::Verify(uint64_t cursor) {
  VerifyReply reply;
  absl::Status status = Call(
      kSmallWords, TERRACE_METHOD(verify), [&](auto& request) { request.setCursor(cursor); },
      [&](auto& response) { return ReadVerify(response.getReply(), reply); });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<ResizeReply> ConnectionImpl::Resize(const ResizeRequest& request) {
  ResizeReply reply;
  absl::Status status = Call(
      DataWords(request.tier.size() + request.tenant.size()), TERRACE_METHOD(resize),
      [&](auto& params) { WriteResize(request, params); },
      [&](auto& response) { return ReadResizeReply(response.getReply(), reply); });
  if (!status.ok()) return status;
  return reply;
}

absl::StatusOr<MissRatioCurveReply> ConnectionImpl::MissRatioCurve(const MissRatioQuery& query) {
  MissRatioCurveReply reply;
  absl::Status status = Call(
      DataWords(query.tier.size() + query.tenant.size()), TERRACE_METHOD(missRatioCurve),
      [&](auto& params) { WriteCurveQuery(query, params); },
      [&](auto& response) { return ReadCurve(response.getReply(), reply); });
  if (!status.ok()) return status;
  return reply;
}

#undef TERRACE_METHOD

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(ConnectionOptions options) {
  const std::string& path = options.socket_path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket_path '", path, "': 1 .. ", sizeof address.sun_path - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  kj::AutoCloseFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return absl::UnavailableError(absl::StrCat("socket: ", strerror(errno)));
  int rc;
  do {
    rc = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) {
    const std::string text = absl::StrCat("socket ", path, ": ", strerror(errno));
    if (errno == ENOENT || errno == ENOTDIR) return absl::NotFoundError(text);
    if (errno == EACCES) return absl::PermissionDeniedError(text);
    return absl::UnavailableError(absl::StrCat(text, " (is terraced running?)"));
  }
  auto connection = std::make_unique<ConnectionImpl>(kj::mv(fd), options.call_timeout_ms);
  if (absl::Status status = connection->Hello(options.hello); !status.ok()) return status;
  return connection;
}

}  // namespace terrace
