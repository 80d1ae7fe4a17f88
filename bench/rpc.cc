// rpc: the cost of asking where a long prefix is, against a bare socket that carries the same
// bytes.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "bench/chunk_writer.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kChunks = 256;
constexpr size_t kRequestBytes = kChunks * sizeof(ObjectKey);
constexpr size_t kReplyBytes = kChunks * 16;  // ExtentInfo on the wire
constexpr int kPairs = 9;
constexpr int kCallsPerPair = 2000;
constexpr int kWarmUpCalls = 500;

bool ReadAll(int fd, void* data, size_t bytes) {
  auto* at = static_cast<uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t got = read(fd, at, bytes);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

bool WriteAll(int fd, const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t put = write(fd, at, bytes);
    if (put <= 0) return false;
    at += put;
    bytes -= static_cast<size_t>(put);
  }
  return true;
}

// Another process that answers kReplyBytes to every kRequestBytes.
class PingPong {
 public:
  static absl::StatusOr<std::unique_ptr<PingPong>> Start() {
    std::array<int, 2> fds{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
      return absl::InternalError(absl::StrCat("socketpair: ", std::strerror(errno)));
    }
    const pid_t child = fork();
    if (child < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(fds[0]);
      std::array<uint8_t, kRequestBytes> buffer;
      while (ReadAll(fds[1], buffer.data(), kRequestBytes) &&
             WriteAll(fds[1], buffer.data(), kReplyBytes)) {
      }
      _exit(0);
    }
    close(fds[1]);
    return std::unique_ptr<PingPong>(new PingPong(fds[0], child));
  }
  ~PingPong() {
    close(fd_);  // the child reads the end of the stream and exits
    waitpid(child_, nullptr, 0);
  }
  PingPong(const PingPong&) = delete;
  PingPong& operator=(const PingPong&) = delete;

  bool Call() {
    return WriteAll(fd_, buffer_.data(), kRequestBytes) &&
           ReadAll(fd_, buffer_.data(), kReplyBytes);
  }

 private:
  PingPong(int fd, pid_t child) : fd_(fd), child_(child) {}
  int fd_;
  pid_t child_;
  std::array<uint8_t, kRequestBytes> buffer_{};
};

// Seconds of each of `count` calls; stops early when one fails.
template <typename Call>
std::vector<double> Times(int count, Call&& call) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    const double start = NowSeconds();
    if (!call()) break;
    times.push_back(NowSeconds() - start);
  }
  return times;
}

Pair MicrosecondsAt(double percent, std::vector<double>& ours, std::vector<double>& reference) {
  return {Percentile(ours, percent) * 1e6, Percentile(reference, percent) * 1e6};
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunRpc(const Context& context) {
  auto ping_pong = PingPong::Start();
  if (!ping_pong.ok()) return ping_pong.status();
  DaemonConfig config;
  config.host_bytes = uint64_t{256} << 20;
  const auto daemon = PrivateDaemon::Start(context, "rpc", config);
  if (!daemon.ok()) return daemon.status();
  const auto connection = (*daemon)->Connect();
  if (!connection.ok()) return connection.status();
  auto writer = ChunkWriter::Create(**connection, TinyGeometry());
  if (!writer.ok()) return writer.status();
  const std::vector<ChunkKeys> chunks = (*writer)->RandomChain({}, kChunks);
  const absl::Status stored = (*writer)->Store(chunks);
  if (!stored.ok()) return stored;
  std::vector<ObjectKey> keys;
  for (const ChunkKeys& chunk : chunks) keys.push_back(chunk.grains.back());

  std::vector<ExtentInfo> extents;
  absl::Status failure;
  const auto lookup = [&] {
    extents.clear();
    failure = (*connection)->Lookup((*writer)->layout_id(), keys, extents);
    if (failure.ok() && extents.size() != kChunks) {
      failure = absl::InternalError(absl::StrCat("lookup found ", extents.size(), " of ", kChunks));
    }
    return failure.ok();
  };
  const auto ping = [&] { return (*ping_pong)->Call(); };
  Times(kWarmUpCalls, lookup);
  Times(kWarmUpCalls, ping);
  std::vector<Pair> p50, p99;
  for (int pair = 0; pair < kPairs; ++pair) {
    std::vector<double> ours = Times(kCallsPerPair, lookup);
    if (!failure.ok()) return failure;
    std::vector<double> reference = Times(kCallsPerPair, ping);
    if (reference.size() != kCallsPerPair) return absl::InternalError("the ping-pong peer ended");
    p50.push_back(MicrosecondsAt(50, ours, reference));
    p99.push_back(MicrosecondsAt(99, ours, reference));
  }
  return std::vector<Row>{
      MakeRow("lookup_256_chunks_p50", "us", "unix socket ping-pong, same bytes, p50", p50),
      MakeRow("lookup_256_chunks_p99", "us", "unix socket ping-pong, same bytes, p99", p99)};
}

}  // namespace terrace::bench
