// terraced: constructs everything in order, serves until SIGTERM or SIGINT, drains, exits.
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "daemon/cache_service.h"
#include "daemon/resp_store.h"
#include "kernels/host_device.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"
#include "transport/loop.h"
#include "transport/resp_server.h"
#include "transport/server.h"

namespace terrace {
namespace {

constexpr uint64_t kTickMs = 20;
constexpr std::chrono::seconds kDrainTimeout{30};

absl::StatusOr<Options> ReadOptions(const std::string& config_path) {
  return config_path.empty() ? DefaultOptions() : LoadOptions(config_path);
}

// SIGHUP: the file as it is now. What cannot be used changes nothing.
void Reload(CacheService& service, const std::string& config_path) {
  if (config_path.empty()) {
    spdlog::warn("SIGHUP: started without --config, nothing to read anew");
    return;
  }
  absl::StatusOr<Options> configured = ReadOptions(config_path);
  absl::Status status =
      configured.ok() ? service.Reload(*std::move(configured)) : configured.status();
  if (!status.ok()) {
    spdlog::error("SIGHUP: {} is not used, everything stays as it was: {}", config_path,
                  std::string(status.message()));
  }
}

absl::Status PrepareStateDir(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error || access(directory.c_str(), W_OK | X_OK) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("server.state_dir = \"", directory,
                     "\" cannot be written: ", error ? error.message() : std::strerror(errno)));
  }
  return absl::OkStatus();
}

NvmeOptions NvmeOptionsFrom(const Options& options) {
  NvmeOptions nvme;
  nvme.directory = options.nvme.directory;
  nvme.capacity_bytes = options.nvme.capacity.bytes;
  nvme.segment_bytes = options.nvme.segment_size.bytes;
  nvme.queue_depth = options.nvme.queue_depth;
  nvme.piece_bytes = options.nvme.piece_size.bytes;
  nvme.max_pending_write_bytes = options.nvme.max_pending_writes.bytes;
  nvme.read_limit_bytes_per_s = options.nvme.read_limit.bytes;
  nvme.write_budget_bytes_per_day = options.nvme.write_budget.bytes;
  return nvme;
}

// Null: no HBM tier.
std::unique_ptr<kernels::Device> OpenDevice(const HbmSection& options) {
  if (!options.enabled()) return nullptr;
  kernels::HostDeviceOptions device;
  device.capacity_bytes = options.capacity.bytes;
  device.bytes_per_s = static_cast<double>(options.bandwidth.bytes);
  return kernels::NewHostDevice(device);
}

// sd_notify(3) without the library: one datagram to the socket that systemd names.
void NotifySystemd(const Options& options, const char* state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || options.server.systemd_notify == "off") return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  if (sendto(fd, state, std::strlen(state), MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&address),
             offsetof(sockaddr_un, sun_path) + length) < 0) {
    spdlog::warn("systemd notification to {} failed: {}", path, std::strerror(errno));
  }
  close(fd);
}

// Waits for SIGHUP, and at last SIGTERM or SIGINT, on a thread of its own: the signals are blocked
// everywhere else.
class SignalWaiter {
 public:
  explicit SignalWaiter(std::function<void(int)> on_signal)
      : thread_([on_signal = std::move(on_signal)] {
          sigset_t set = Signals();
          int signal = 0;
          do {
            sigwait(&set, &signal);
            on_signal(signal);
          } while (signal == SIGHUP);
        }) {}
  ~SignalWaiter() {
    pthread_kill(thread_.native_handle(), SIGTERM);  // no-op when the thread has already returned
    thread_.join();
  }
  static sigset_t Signals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return set;
  }

 private:
  std::thread thread_;
};

// What listens, as long as it is served.
struct Listeners {
  std::unique_ptr<RespStore> resp_store;
  std::unique_ptr<RespServer> resp;
  std::unique_ptr<Server> server;

  void Close() {
    server.reset();
    resp.reset();
    resp_store.reset();
  }
};

// The first line of the file, without its end.
absl::StatusOr<std::string> ReadPassword(const std::string& path) {
  std::ifstream file(path);
  std::string password;
  if (!std::getline(file, password) || password.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "resp.password_file = \"", path, "\": its first line cannot be read, or is empty"));
  }
  if (password.back() == '\r') password.pop_back();
  return password;
}

absl::Status ListenResp(const Options& options, CacheService& service, const PostFn& post,
                        Listeners& listeners) {
  const RespSection& resp = options.resp;
  if (resp.listen.empty()) return absl::OkStatus();
  RespServerOptions server_options;
  server_options.listen = resp.listen;
  server_options.max_value_bytes = resp.max_value.bytes;
  server_options.max_clients = resp.max_clients;
  server_options.lmcache = resp.lmcache;
  server_options.version = kVersion;
  if (!resp.password_file.empty()) {
    absl::StatusOr<std::string> password = ReadPassword(resp.password_file);
    if (!password.ok()) return password.status();
    server_options.password = *std::move(password);
  }
  auto store = RespStore::Open(service, resp);
  if (!store.ok()) return store.status();
  listeners.resp_store = *std::move(store);
  auto server = RespServer::Listen(std::move(server_options), *listeners.resp_store, post);
  if (!server.ok()) return server.status();
  listeners.resp = *std::move(server);
  service.AddCounters([&listeners] {
    return listeners.resp == nullptr ? CacheService::Counters() : listeners.resp->stats().List();
  });
  spdlog::info("RESP front-end on {} for tenant '{}'", resp.listen, resp.tenant);
  return absl::OkStatus();
}

// Serves until a signal, then until everything committed is durable or the drain times out.
void Serve(Loop& loop, CacheService& service, Listeners& listeners,
           const std::string& config_path) {
  std::optional<std::chrono::steady_clock::time_point> drain_deadline;
  loop.Every(kTickMs, [&] {
    service.Tick();
    if (listeners.resp_store != nullptr) listeners.resp_store->Tick();
    if (!drain_deadline) return;
    const bool late = std::chrono::steady_clock::now() > *drain_deadline;
    if (service.pending_objects() == 0 || late) {
      if (late) spdlog::warn("drain timed out: {} objects not durable", service.pending_objects());
      loop.Stop();
    }
  });
  SignalWaiter signals([&](int signal) {
    loop.Post([&, signal] {
      if (drain_deadline) return;
      if (signal == SIGHUP) {
        Reload(service, config_path);
        return;
      }
      spdlog::info("{}: draining, {} objects to write", strsignal(signal),
                   service.pending_objects());
      drain_deadline = std::chrono::steady_clock::now() + kDrainTimeout;
      listeners.Close();
    });
  });
  loop.Run();
}

absl::Status Run(const std::string& config_path) {
  absl::StatusOr<Options> configured = ReadOptions(config_path);
  if (!configured.ok()) return configured.status();
  absl::StatusOr<Options> options = ResolveOptions(*configured);
  if (!options.ok()) return options.status();
  spdlog::set_level(spdlog::level::from_str(options->server.log_level));
  absl::Status state_dir = PrepareStateDir(options->server.state_dir);
  if (!state_dir.ok()) return state_dir;

  Loop loop;
  // First, because their memory is populated while the NVMe tier opens.
  const std::unique_ptr<kernels::Device> device = OpenDevice(options->hbm);
  absl::StatusOr<std::vector<Tenant>> tenants = BuildTenants(*options, loop.poster(), device.get());
  if (!tenants.ok()) return tenants.status();
  std::unique_ptr<DeviceLink> device_link;
  if (device != nullptr) device_link = std::make_unique<DeviceLink>(device.get(), loop.poster());
  std::unique_ptr<NvmeTier> nvme;
  if (options->nvme.enabled) {
    auto opened = NvmeTier::Open(NvmeOptionsFrom(*options), loop.poster());
    if (!opened.ok()) return opened.status();
    nvme = *std::move(opened);
  }
  CacheService service(*options, *tenants, nvme.get(), loop.poster(), device_link.get());
  service.SetConfigured(*std::move(configured));
  absl::Status recovered = service.Recover();
  if (!recovered.ok()) return recovered;
  if (nvme != nullptr) {
    const NvmeStats stats = nvme->Stats();
    spdlog::info("nvme tier {}: {} records, {} of {} bytes, {}", options->nvme.directory,
                 stats.records, stats.used_bytes, stats.capacity_bytes, stats.engine);
  }

  ServerOptions server_options;
  server_options.socket_path = options->server.socket_path;
  server_options.max_message_bytes = options->limits.max_message_bytes.bytes;
  server_options.max_connections = options->limits.max_sessions;
  server_options.max_keys_per_call = options->limits.max_keys_per_call;
  Listeners listeners;
  auto server = Server::Listen(loop, server_options, service);
  if (!server.ok()) return server.status();
  listeners.server = *std::move(server);
  if (absl::Status s = ListenResp(*options, service, loop.poster(), listeners); !s.ok()) return s;
  spdlog::info("terraced {} serving {} objects on {}", kVersion, service.object_count(),
               options->server.socket_path);
  NotifySystemd(*options, "READY=1");
  Serve(loop, service, listeners, config_path);
  NotifySystemd(*options, "STOPPING=1");
  nvme.reset();  // finishes queued writes while the service can still hear of them
  spdlog::info("stopped");
  return absl::OkStatus();
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  CLI::App app{
      "terraced: keeps KV cache and expert weights on the cheapest memory that is fast "
      "enough.\nWithout --config it serves the invoking user from default paths; "
      "`terrace config show --effective` prints what that means here.",
      "terraced"};
  std::string config_path;
  app.add_option("--config", config_path, "TOML configuration file (docs/configuration.md)");
  app.set_version_flag("--version", terrace::kVersion);
  CLI11_PARSE(app, argc, argv);

  // Before any thread exists, so that every thread inherits it.
  sigset_t signals = terrace::SignalWaiter::Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  spdlog::set_default_logger(spdlog::stderr_logger_mt("terraced"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
  spdlog::flush_on(spdlog::level::info);

  absl::Status status = terrace::Run(config_path);
  if (status.ok()) return 0;
  spdlog::critical("{}", std::string(status.message()));
  return 1;
}
