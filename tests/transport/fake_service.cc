#include "tests/transport/fake_service.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>

namespace terrace {

ObjectKey TestKey(uint8_t seed) {
  ObjectKey key;
  for (size_t i = 0; i < key.bytes.size(); ++i) key.bytes[i] = static_cast<uint8_t>(seed + i);
  return key;
}

FakeService::FakeService() {
  welcome.server_version = "1.2.3-test";
  welcome.features = {"tail", "verify"};
  welcome.tenant = "tenant-a";
  for (size_t i = 0; i < welcome.salt.size(); ++i) welcome.salt[i] = static_cast<uint8_t>(200 - i);
  welcome.verify = VerifyMode::kAlways;
  welcome.max_keys_per_call = 4096;
  welcome.default_lease_ttl_ms = 30000;
  welcome.max_lease_ttl_ms = uint64_t{1} << 40;
  welcome.host_capacity_bytes = 1 << 20;
  welcome.board_slots = 77;
  welcome.segment_fd = memfd_create("segment", MFD_CLOEXEC);
  welcome.board_fd = memfd_create("board", MFD_CLOEXEC);
  welcome.ready_event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  EXPECT_EQ(ftruncate(welcome.segment_fd, 1 << 20), 0);
  EXPECT_EQ(ftruncate(welcome.board_fd, 4096), 0);
}

FakeService::~FakeService() {
  close(welcome.segment_fd);
  close(welcome.board_fd);
  close(welcome.ready_event_fd);
}

absl::StatusOr<Welcome> FakeService::OpenSession(const PeerCredentials& from,
                                                 const ClientHello& client_hello) {
  peer = from;
  hello = client_hello;
  if (!open_failure.ok()) return open_failure;
  Welcome answer = welcome;
  answer.session_id = next_session_++;
  ++open_count;
  return answer;
}

void FakeService::CloseSession(SessionId session) {
  ++closed[session];
  ++close_count;
}

absl::StatusOr<uint32_t> FakeService::RegisterLayout(SessionId, ObjectLayout new_layout,
                                                     std::optional<KvGeometry> new_geometry) {
  if (!failure.ok()) return failure;
  layout = std::move(new_layout);
  geometry = std::move(new_geometry);
  return 42;
}

absl::Status FakeService::Lookup(SessionId, uint32_t id, absl::Span<const ObjectKey> wanted,
                                 std::vector<ExtentInfo>& out) {
  ++lookup_count;
  if (on_lookup) on_lookup();
  if (!failure.ok()) return failure;
  layout_id = id;
  keys.assign(wanted.begin(), wanted.end());
  out.insert(out.end(), extents.begin(), extents.end());
  return absl::OkStatus();
}

absl::Status FakeService::Find(SessionId session, uint32_t id, absl::Span<const ObjectKey> wanted,
                               std::vector<ExtentInfo>& out) {
  return Lookup(session, id, wanted, out);
}

absl::StatusOr<TailMatch> FakeService::MatchTail(SessionId, uint32_t id, const ObjectKey& from,
                                                 absl::Span<const ObjectKey> grains) {
  if (!failure.ok()) return failure;
  layout_id = id;
  parent = from;
  keys.assign(grains.begin(), grains.end());
  return match;
}

absl::StatusOr<std::vector<ReserveResult>> FakeService::Reserve(
    SessionId, uint32_t id, absl::Span<const ReserveItem> items) {
  if (!failure.ok()) return failure;
  layout_id = id;
  reserve_items.assign(items.begin(), items.end());
  return reserve_results;
}

absl::StatusOr<std::vector<absl::Status>> FakeService::Commit(SessionId,
                                                              absl::Span<const CommitItem> items) {
  if (!failure.ok()) return failure;
  commit_items.assign(items.begin(), items.end());
  return commit_results;
}

absl::Status FakeService::Abort(SessionId, absl::Span<const uint64_t> reservation_ids) {
  ids.assign(reservation_ids.begin(), reservation_ids.end());
  return failure;
}

absl::StatusOr<AcquireReply> FakeService::Acquire(SessionId, uint32_t id,
                                                  absl::Span<const ObjectKey> wanted,
                                                  const AcquireOptions& options) {
  if (!failure.ok()) return failure;
  layout_id = id;
  keys.assign(wanted.begin(), wanted.end());
  acquire_options = options;
  return acquire_reply;
}

absl::Status FakeService::Release(SessionId, absl::Span<const uint64_t> lease_ids) {
  ids.assign(lease_ids.begin(), lease_ids.end());
  return failure;
}

absl::StatusOr<uint64_t> FakeService::Renew(SessionId, uint64_t lease_id, uint32_t ttl_ms) {
  if (!failure.ok()) return failure;
  ids = {lease_id, ttl_ms};
  return uint64_t{1} << 50;
}

absl::StatusOr<std::vector<HintResult>> FakeService::Hint(SessionId,
                                                          absl::Span<const HintItem> items) {
  ++hint_count;
  if (!failure.ok()) return failure;
  hints.assign(items.begin(), items.end());
  hint_keys.clear();
  for (const HintItem& item : items) hint_keys.emplace_back(item.keys.begin(), item.keys.end());
  return hint_results;
}

absl::StatusOr<FlushReply> FakeService::Flush(SessionId) {
  if (!failure.ok()) return failure;
  return flush_reply;
}

absl::StatusOr<StatusReply> FakeService::Status(SessionId) {
  if (!failure.ok()) return failure;
  return status_reply;
}

absl::StatusOr<ListReply> FakeService::List(SessionId, uint64_t cursor, uint32_t limit) {
  if (!failure.ok()) return failure;
  ids = {cursor, limit};
  return list_reply;
}

absl::StatusOr<ObjectInfo> FakeService::Show(SessionId, const ObjectKey& key) {
  if (!failure.ok()) return failure;
  keys = {key};
  return object;
}

absl::Status FakeService::Remove(SessionId, const ObjectKey& key) {
  keys = {key};
  return failure;
}

absl::Status FakeService::Pin(SessionId, const ObjectKey& key, bool pinned) {
  keys = {key};
  flag = pinned;
  return failure;
}

absl::StatusOr<VerifyReply> FakeService::Verify(SessionId, uint64_t cursor) {
  if (!failure.ok()) return failure;
  number = cursor;
  return verify_reply;
}

absl::StatusOr<ResizeReply> FakeService::Resize(SessionId, const ResizeRequest& request) {
  if (!failure.ok()) return failure;
  resize_request = request;
  return resize_reply;
}

absl::StatusOr<MissRatioCurveReply> FakeService::MissRatioCurve(SessionId,
                                                                const MissRatioQuery& query) {
  if (!failure.ok()) return failure;
  curve_query = query;
  return curve_reply;
}

TestHost::TestHost(Service& service, ServerOptions options) : options_(std::move(options)) {
  if (options_.socket_path.empty()) options_.socket_path = TestDirectory() + "/s";
  std::promise<Loop*> ready;
  auto loop = ready.get_future();
  thread_ = std::thread([this, &service, &ready] {
    Loop loop;
    auto server = Server::Listen(loop, options_, service);
    EXPECT_TRUE(server.ok()) << server.status();
    ready.set_value(&loop);
    loop.Run();
  });
  loop_ = loop.get();
}

void TestHost::Stop() {
  if (!thread_.joinable()) return;
  loop_->Stop();
  thread_.join();
}

void TestHost::OnLoop(std::function<void()> work) {
  std::promise<void> done;
  loop_->Post([&] {
    work();
    done.set_value();
  });
  done.get_future().wait();
}

absl::StatusOr<std::unique_ptr<Connection>> TestHost::Connect(uint32_t timeout_ms) const {
  ConnectionOptions options;
  options.socket_path = options_.socket_path;
  options.hello.client_name = "transport_test";
  options.hello.tenant = "tenant-a";
  options.call_timeout_ms = timeout_ms;
  return Connection::Open(std::move(options));
}

std::string TestDirectory() {
  struct Cleaner {
    std::vector<std::string> paths;
    ~Cleaner() {
      std::error_code ignored;
      for (const auto& path : paths) std::filesystem::remove_all(path, ignored);
    }
  };
  static Cleaner cleaner;
  std::string path = (std::filesystem::temp_directory_path() / "terrace-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) ADD_FAILURE() << "mkdtemp: " << strerror(errno);
  cleaner.paths.push_back(path);
  return path;
}

bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (std::chrono::steady_clock::now() < deadline) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return condition();
}

int RawConnect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0)
      << strerror(errno);
  return fd;
}

}  // namespace terrace
