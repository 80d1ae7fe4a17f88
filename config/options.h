// Everything an operator sets, from one TOML file. docs/configuration.md is the reference for
// users; option_keys.cc holds the one table of keys it, the parser and the example follow.
//
// Plain values; any thread. Parsing is pure; LoadOptions reads the one file; only ResolveOptions
// looks at the machine.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "config/object_key.h"
#include "config/object_layout.h"
#include "config/size.h"

namespace terrace {

struct ServerSection {
  // Unix domain socket clients connect to. Empty until resolved.
  std::string socket_path;
  // Everything that outlives the daemon: the tenant secret, the NVMe tier. Empty until resolved.
  std::string state_dir;
  std::string log_level = "info";       // trace debug info warning error off
  std::string systemd_notify = "auto";  // auto: when NOTIFY_SOCKET is set; off: never

  friend bool operator==(const ServerSection&, const ServerSection&) = default;
};

// Past one of these a caller gets ResourceExhausted, never a stall. None affects stored bytes.
struct LimitsSection {
  uint64_t max_sessions = 256;
  uint64_t max_keys_per_call = 4096;
  Size max_message_bytes = Size::Bytes(uint64_t{64} << 20);
  uint64_t max_leases_per_session = 1024;
  uint64_t max_reservations_per_session = 1024;
  uint64_t max_hints_per_session = 65536;
  uint64_t max_layouts = 1024;
  uint64_t lease_ttl_s = 60;        // of a lease that names no time limit
  uint64_t max_lease_ttl_s = 3600;  // longer requests are cut to this

  friend bool operator==(const LimitsSection&, const LimitsSection&) = default;
};

struct HostSection {
  // Share of the memory this process may use: the cgroup's limit, else the machine's memory.
  Size capacity = Size::Percent(25);
  // Memory is taken and populated in steps of this size, ahead of demand. Affects speed only.
  Size headroom = Size::Bytes(uint64_t{128} << 20);
  // "hard": a tenant's part is its own; "fair": others may use what it leaves until it needs it.
  std::string sharing = "hard";
  // Which objects leave first: a name of tiers/eviction/registry.h.
  std::string policy = "default";
  // When a checksum is compared: "crossing" (between tiers) or "always" (also on host reads).
  std::string verify = "crossing";

  friend bool operator==(const HostSection&, const HostSection&) = default;
};

// Memory of a device, above host memory. Off when the capacity is 0.
struct HbmSection {
  Size capacity = Size::Bytes(0);   // all tenants together
  std::string device = "host";      // "host": host memory behind a throttle (kernels/host_device.h)
  Size bandwidth = Size::Bytes(0);  // of "host", a second, each way; 0: as fast as memory is

  bool enabled() const { return capacity.bytes > 0; }
  friend bool operator==(const HbmSection&, const HbmSection&) = default;
};

struct NvmeSection {
  bool enabled = true;
  std::string directory;  // empty until resolved: state_dir/nvme
  // Share of what its file system has free, counting what the tier itself already holds.
  Size capacity = Size::Percent(20);
  Size segment_size = Size::Bytes(uint64_t{64} << 20);  // affects the stored format of new segments
  uint64_t queue_depth = 16;
  Size piece_size = Size::Bytes(uint64_t{1} << 20);
  Size max_pending_writes = Size::Bytes(uint64_t{256} << 20);
  // Which objects are worth writing: "auto", "always", "second-touch" (tiers/nvme/admission.h).
  std::string admission = "auto";
  Size read_limit = Size::Bytes(0);    // a second; 0: none
  Size write_budget = Size::Bytes(0);  // a day; 0: no limit

  friend bool operator==(const NvmeSection&, const NvmeSection&) = default;
};

// How KV is encoded on its way to tiers below host memory.
struct CodecSection {
  // How far decoded KV may be from what was stored: "lossless", "near", "balanced", "archive", or
  // "kl:X". See QualityKl.
  std::string quality = "lossless";
  std::string select = "auto";  // "auto": by measured bandwidth; else the codec or form to use
  std::string profiles;         // directory; empty until resolved: state_dir/profiles
  uint64_t threads = 0;         // 0: half the cores

  friend bool operator==(const CodecSection&, const CodecSection&) = default;
};
// The mean KL divergence in nats that a quality allows, 0 for "lossless"; nullopt when it is none.
std::optional<double> QualityKl(std::string_view quality);

// What one kind of object may have of a tenant's host memory.
struct KindLimit {
  Size floor = Size::Bytes(0);        // not taken from it by other kinds
  Size ceiling = Size::Percent(100);  // above it, it gives first

  friend bool operator==(const KindLimit&, const KindLimit&) = default;
};
// By ObjectKind, from kKv.
using KindLimits = std::array<KindLimit, kObjectKinds>;

struct PlacementSection {
  KindLimits limits;

  friend bool operator==(const PlacementSection&, const PlacementSection&) = default;
};

struct OptionalKindLimit {
  std::optional<Size> floor = {}, ceiling = {};

  friend bool operator==(const OptionalKindLimit&, const OptionalKindLimit&) = default;
};

// Bringing objects up before they are asked for, by the hints of engines.
struct PrefetchSection {
  bool enabled = true;  // false: hints steer eviction only

  friend bool operator==(const PrefetchSection&, const PrefetchSection&) = default;
};

// The front-end that speaks the protocol of Redis.
struct RespSection {
  std::string listen;         // ListenAddress; empty: off
  bool allow_remote = false;  // listen may be what other machines reach
  std::string password_file;  // empty: no password
  std::string tenant;         // whose objects it serves; empty: the only one
  Size max_value = Size::Bytes(uint64_t{512} << 20);
  uint64_t max_clients = 10000;
  uint64_t exists_lease_ms = 2000;  // 0: none
  bool lmcache = false;             // what its client needs where it differs from Redis

  friend bool operator==(const RespSection&, const RespSection&) = default;
};

struct TenantOptions {
  std::string name;
  std::vector<uint32_t> uids;  // peers with these uids are this tenant
  // Absent: the daemon derives one from the secret in state_dir.
  std::optional<Salt> salt = {};
  // Part of host.capacity. Absent until resolved: an equal share of what the others leave.
  std::optional<Size> host_capacity = {};
  // The most that its records may take of nvme.capacity. Absent: no limit of its own.
  std::optional<Size> nvme_capacity = {};
  // Absent until resolved: as in [placement]. Shares stay shares: host memory may be resized.
  std::array<OptionalKindLimit, kObjectKinds> limits = {};

  // Of resolved options.
  KindLimits Limits() const;

  friend bool operator==(const TenantOptions&, const TenantOptions&) = default;
};

struct Options {
  ServerSection server;
  LimitsSection limits;
  HostSection host;
  HbmSection hbm;
  NvmeSection nvme;
  CodecSection codec;
  PlacementSection placement;
  PrefetchSection prefetch;
  RespSection resp;
  std::vector<TenantOptions> tenants;  // empty until resolved: "default" with the daemon's uid

  friend bool operator==(const Options&, const Options&) = default;
};

Options DefaultOptions();

// InvalidArgument "SOURCE:LINE: key 'host.capacity' = "9x": expected ...", also for unknown keys,
// wrong types, values out of range, and a tenant name or uid given twice. Never throws, whatever
// the text; `source_name` only names it in messages.
absl::StatusOr<Options> ParseOptions(std::string_view text, std::string_view source_name);
// NotFound or PermissionDenied when the file cannot be read, else as ParseOptions.
absl::StatusOr<Options> LoadOptions(const std::string& path);

// Turns every share into bytes and fills what was left to default, so that the result is what the
// daemon runs with: every Size absolute, socket_path, state_dir and nvme.directory absolute paths,
// at least one tenant, each with a host_capacity. Reads /proc, the cgroup, the environment and the
// file system of nvme.directory; creates nothing.
// InvalidArgument naming the key when values contradict each other on this machine.
absl::StatusOr<Options> ResolveOptions(Options options);

// A file that ParseOptions reads back to the same values. kHide replaces salts, which are secrets,
// by a comment.
enum class Secrets { kHide, kShow };
std::string ToToml(const Options& options, Secrets secrets = Secrets::kHide);

// Names of the keys whose values differ, in the order of the reference: "host.capacity",
// "tenants.NAME.host_capacity"; "tenants" when tenants were added, removed or reordered.
std::vector<std::string> ChangedKeys(const Options& before, const Options& after);

// Where the daemon listens and clients connect when nothing says otherwise:
// $XDG_RUNTIME_DIR/terrace/terraced.sock, else /run/terrace/terraced.sock.
std::string DefaultSocketPath();

// The commented example file, and the reference tables of docs/configuration.md: both are written
// from the table of keys, and a test compares the files with them.
std::string ExampleToml();
std::string ReferenceTables();

}  // namespace terrace
