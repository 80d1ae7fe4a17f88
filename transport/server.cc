#include "transport/server.h"

#include <capnp/rpc-twoparty.h>
#include <capnp/rpc.capnp.h>
#include <capnp/serialize.h>
#include <kj/debug.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/loop_impl.h"
#include "transport/server_stream.h"
#include "transport/session_server.h"

namespace terrace {
namespace {

// Any non-zero value lets the library send descriptors; ServerStream never receives one.
constexpr unsigned kMaxFdsPerMessage = 1;
constexpr int kBacklog = 128;

absl::Status Errno(const char* what, const std::string& path) {
  return absl::UnavailableError(absl::StrCat(what, " ", path, ": ", strerror(errno)));
}

capnp::ReaderOptions OptionsFor(uint64_t max_message_bytes) {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = max_message_bytes / sizeof(capnp::word);
  return options;
}

// One client. Members are destroyed from the last: the RPC system, then the streams under it.
struct Client {
  Client(kj::UnixEventPort& port, kj::AutoCloseFd&& socket, std::shared_ptr<SessionState> session)
      : fd(kj::mv(socket)),
        state(std::move(session)),
        stream(port, fd, state->max_message_bytes),
        network(stream, kMaxFdsPerMessage, capnp::rpc::twoparty::Side::SERVER,
                OptionsFor(state->max_message_bytes)),
        rpc(capnp::makeRpcServer(network, NewTerraceServer(state))) {
    // Calls in progress; twice the message limit, so that a largest message is never alone stuck.
    rpc.setFlowLimit(2 * state->max_message_bytes / sizeof(capnp::word));
  }

  kj::AutoCloseFd fd;
  std::shared_ptr<SessionState> state;
  ServerStream stream;
  capnp::TwoPartyVatNetwork network;
  capnp::RpcSystem<capnp::rpc::twoparty::VatId> rpc;
};

class ServerImpl final : public Server, private kj::TaskSet::ErrorHandler {
 public:
  ServerImpl(Loop& loop, ServerOptions options, Service& service, kj::AutoCloseFd&& listener)
      : loop_(loop),
        options_(std::move(options)),
        service_(service),
        listener_(kj::mv(listener)),
        observer_(loop.impl().io.unixEventPort, listener_,
                  kj::UnixEventPort::FdObserver::OBSERVE_READ),
        tasks_(*this) {
    struct stat info;
    if (stat(options_.socket_path.c_str(), &info) == 0) inode_ = info.st_ino;
    tasks_.add(Accept());
  }

  ~ServerImpl() noexcept override {
    while (!clients_.empty()) Remove(clients_.begin()->first);
    // Not the file of a daemon that has taken over the path meanwhile.
    struct stat info;
    if (stat(options_.socket_path.c_str(), &info) == 0 && info.st_ino == inode_) {
      unlink(options_.socket_path.c_str());
    }
  }

 private:
  kj::Promise<void> Accept();
  void Admit(kj::AutoCloseFd&& fd);
  void Refuse(int fd);
  void Remove(uint64_t client_id);
  void taskFailed(kj::Exception&& exception) override { KJ_LOG(ERROR, exception); }

  Loop& loop_;
  const ServerOptions options_;
  Service& service_;
  kj::AutoCloseFd listener_;
  kj::UnixEventPort::FdObserver observer_;
  ino_t inode_ = 0;
  std::unordered_map<uint64_t, kj::Own<Client>> clients_;
  uint64_t next_client_id_ = 1;
  kj::TaskSet tasks_;
};

kj::Promise<void> ServerImpl::Accept() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      Admit(kj::AutoCloseFd(fd));
    } else if (errno == EAGAIN) {
      return observer_.whenBecomesReadable().then([this] { return Accept(); });
    } else if (errno != EINTR && errno != ECONNABORTED) {
      // Out of descriptors or memory. The edge is spent, so come back by the clock.
      return loop_.impl()
          .io.lowLevelProvider->getTimer()
          .afterDelay(10 * kj::MILLISECONDS)
          .then([this] { return Accept(); });
    }
  }
}

void ServerImpl::Admit(kj::AutoCloseFd&& fd) {
  if (clients_.size() >= options_.max_connections) return Refuse(fd);
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  auto state = std::make_shared<SessionState>();
  state->service = &service_;
  state->peer = {peer.uid, peer.pid};
  state->limits.max_keys_per_call = options_.max_keys_per_call;
  state->max_message_bytes = options_.max_message_bytes;
  const uint64_t id = next_client_id_++;
  auto client = kj::heap<Client>(loop_.impl().io.unixEventPort, kj::mv(fd), std::move(state));
  auto ended = client->stream.WhenEnded().exclusiveJoin(client->network.onDisconnect());
  clients_.emplace(id, kj::mv(client));
  // Whether it ended well or not is all one. Later, not in an event of what is to be destroyed.
  tasks_.add(ended.catch_([](kj::Exception&&) {}).then([this, id] {
    return kj::evalLater([this, id] { Remove(id); });
  }));
}

// Tells why in the protocol's own words, so that the client reports ResourceExhausted.
void ServerImpl::Refuse(int fd) {
  capnp::MallocMessageBuilder message;
  auto abort = message.initRoot<capnp::rpc::Message>().initAbort();
  abort.setType(capnp::rpc::Exception::Type::OVERLOADED);
  const std::string reason =
      absl::StrCat("connections exceed limits.max_connections = ", options_.max_connections);
  abort.setReason(reason.c_str());
  auto words = capnp::messageToFlatArray(message);
  auto bytes = words.asBytes();
  // A new socket has room for it; a client that closed already needs no reason.
  (void)!send(fd, bytes.begin(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void ServerImpl::Remove(uint64_t client_id) {
  auto it = clients_.find(client_id);
  if (it == clients_.end()) return;
  auto client = kj::mv(it->second);
  clients_.erase(it);
  auto state = client->state;
  state->closed = true;
  // First the connection, which may still refer to the session's descriptors, then the session.
  KJ_IF_MAYBE (exception, kj::runCatchingExceptions([&] { client = nullptr; })) {
    KJ_LOG(WARNING, "closing a connection", *exception);
  }
  if (state->opened) service_.CloseSession(state->id);
}

absl::Status MakeDirectory(const std::filesystem::path& path) {
  std::error_code error;
  if (path.empty() || std::filesystem::exists(path, error)) return absl::OkStatus();
  if (absl::Status parent = MakeDirectory(path.parent_path()); !parent.ok()) return parent;
  if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) {
    return Errno("cannot create the directory of socket_path,", path.string());
  }
  return absl::OkStatus();
}

// Removes a socket file that nobody answers on.
absl::Status RemoveStale(const sockaddr_un& address, const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Errno("socket_path", path);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("socket_path ", path, " exists and is not a socket"));
  }
  kj::AutoCloseFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (probe.get() < 0) return Errno("socket", path);
  // EAGAIN: a full backlog, so somebody listens.
  if (connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno != ECONNREFUSED) {
    return absl::FailedPreconditionError(
        absl::StrCat("socket_path ", path, " is served by another daemon"));
  }
  if (unlink(path.c_str()) != 0) return Errno("cannot remove the stale socket", path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Listen(Loop& loop, ServerOptions options,
                                                       Service& service) {
  const std::string& path = options.socket_path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket_path '", path, "': 1 .. ", sizeof address.sun_path - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  absl::Status status = MakeDirectory(std::filesystem::path(path).parent_path());
  if (status.ok()) status = RemoveStale(address, path);
  if (!status.ok()) return status;

  kj::AutoCloseFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return Errno("socket", path);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Errno("cannot bind socket_path", path);
  }
  if (chmod(path.c_str(), 0666) != 0) return Errno("cannot chmod socket_path", path);
  if (listen(fd, kBacklog) != 0) return Errno("cannot listen on socket_path", path);
  return std::make_unique<ServerImpl>(loop, std::move(options), service, kj::mv(fd));
}

}  // namespace terrace
