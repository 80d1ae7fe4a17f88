#include "config/option_keys.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "config/text.h"

namespace terrace {
namespace {

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB, kTiB = 1024 * kGiB;
constexpr uint64_t kPage = 4 * kKiB;
constexpr size_t kMaxPathBytes = 4095;
constexpr size_t kMaxSocketPathBytes = 107;  // sockaddr_un

constexpr std::array<std::string_view, 6> kLogLevels = {"trace",   "debug", "info",
                                                        "warning", "error", "off"};
constexpr std::array<std::string_view, 2> kNotify = {"auto", "off"};
constexpr std::array<std::string_view, 3> kAdmission = {"auto", "always", "second-touch"};
constexpr std::array<std::string_view, 9> kSelect = {
    "auto", "raw", "lossless-fast", "lossless", "zstd", "fastest", "fast", "balanced", "archive"};
constexpr std::array<std::string_view, 2> kSharing = {"hard", "fair"};
// Those of tiers/eviction/registry.h that need no hints; tests compare.
constexpr std::array<std::string_view, 11> kPolicies = {
    "default", "lru",     "arc",  "s3-fifo",   "hit-density", "gdsf",
    "pgdsf",   "marconi", "lfru", "lfu-layer", "lenu"};
constexpr std::array<std::string_view, 1> kDevices = {"host"};
constexpr std::array<std::string_view, 2> kVerify = {"crossing", "always"};

// Access to one member; the tenant's index is ignored outside [[tenants]].
#define TERRACE_MEMBER(path) ([](Options & o, size_t) -> auto& { return o.path; })
#define TERRACE_TENANT(path) ([](Options & o, size_t i) -> auto& { return o.tenants[i].path; })

constexpr std::array<OptionKey, 4> kServerKeys = {{
    {"socket_path", PathField{TERRACE_MEMBER(server.socket_path), kMaxSocketPathBytes},
     "Unix domain socket that clients connect to. Its directory is created if absent.",
     "$XDG_RUNTIME_DIR/terrace/terraced.sock, else /run/terrace/terraced.sock",
     "\"/run/terrace/terraced.sock\""},
    {"state_dir", PathField{TERRACE_MEMBER(server.state_dir), kMaxPathBytes},
     "Holds what outlives the daemon: the secret that salts are derived from and, unless "
     "nvme.directory says otherwise, the NVMe tier. One running daemon a directory.",
     "/var/lib/terrace for root, else $XDG_STATE_HOME/terrace or ~/.local/state/terrace",
     "\"/var/lib/terrace\""},
    {"log_level", ChoiceField{TERRACE_MEMBER(server.log_level), kLogLevels},
     "Least severe message that is logged. info is one line a state change."},
    {"systemd_notify", ChoiceField{TERRACE_MEMBER(server.systemd_notify), kNotify},
     "auto tells systemd when the daemon is ready if NOTIFY_SOCKET is set; off never does."},
}};

constexpr std::array<OptionKey, 9> kLimitsKeys = {{
    {"max_sessions", IntegerField{TERRACE_MEMBER(limits.max_sessions), 1, 65536},
     "Clients connected at the same time."},
    {"max_keys_per_call", IntegerField{TERRACE_MEMBER(limits.max_keys_per_call), 1, 65536},
     "Object keys one call may carry."},
    {"max_message_bytes",
     SizeField{TERRACE_MEMBER(limits.max_message_bytes), {64 * kKiB, kGiB, 8, ""}},
     "Longest control message. Payloads travel in shared memory and do not count."},
    {"max_leases_per_session",
     IntegerField{TERRACE_MEMBER(limits.max_leases_per_session), 1, 1048576},
     "Objects one session may hold in place at the same time."},
    {"max_reservations_per_session",
     IntegerField{TERRACE_MEMBER(limits.max_reservations_per_session), 1, 1048576},
     "Stores one session may have begun and not yet committed."},
    {"max_hints_per_session",
     IntegerField{TERRACE_MEMBER(limits.max_hints_per_session), 1, 1048576},
     "Objects one session may have announced and neither read nor withdrawn. About 150 bytes of "
     "memory each."},
    {"max_layouts", IntegerField{TERRACE_MEMBER(limits.max_layouts), 1, 65536},
     "Object layouts (model geometries) the daemon keeps registered."},
    {"lease_ttl_s", IntegerField{TERRACE_MEMBER(limits.lease_ttl_s), 1, 86400},
     "Seconds after which a lease ends that was asked for without a time limit."},
    {"max_lease_ttl_s", IntegerField{TERRACE_MEMBER(limits.max_lease_ttl_s), 1, 86400},
     "Longest time limit of a lease, seconds; longer requests get this. At least lease_ttl_s."},
}};

constexpr std::array<OptionKey, 5> kHostKeys = {{
    {"capacity",
     SizeField{TERRACE_MEMBER(host.capacity),
               {4 * kMiB, 64 * kTiB, 1, "the cgroup's memory limit, else of the machine's memory"}},
     "Shared memory for objects, all tenants together. Grows to this, never past it. Can be "
     "changed "
     "while the daemon runs."},
    {"headroom", SizeField{TERRACE_MEMBER(host.headroom), {kMiB, 16 * kGiB, kPage, ""}},
     "Memory kept populated and free, ahead of demand, a tenant: a burst of stores or loads up to "
     "this size finds pages ready. Speed only."},
    {"sharing", ChoiceField{TERRACE_MEMBER(host.sharing), kSharing},
     "What of a tenant's part it leaves unused: hard, it stays unused; fair, other tenants borrow "
     "it, "
     "and give it back, evicting, as soon as its owner needs it."},
    {"policy", ChoiceField{TERRACE_MEMBER(host.policy), kPolicies},
     "Which objects leave host memory first when it is full: see docs/architecture.md, What "
     "stays."},
    {"verify", ChoiceField{TERRACE_MEMBER(host.verify), kVerify},
     "When checksums are compared: crossing, whenever bytes move between tiers; always, also each "
     "time an object is acquired from host memory, at the cost of reading it once more."},
}};

constexpr std::array<OptionKey, 3> kHbmKeys = {{
    {"capacity", SizeField{TERRACE_MEMBER(hbm.capacity), {0, 64 * kTiB, kPage, ""}},
     "Memory of the device for objects, all tenants together, in the proportions of their host "
     "memory; taken at the start. 0: no HBM tier. Not less than 1MiB a tenant."},
    {"device", ChoiceField{TERRACE_MEMBER(hbm.device), kDevices},
     "Whose memory it is. host: host memory behind a throttle, which clients read in place."},
    {"bandwidth", SizeField{TERRACE_MEMBER(hbm.bandwidth), {0, kTiB, 1, ""}},
     "Bytes a second that the throttle of the host device lets pass, each way. 0: no throttle."},
}};

constexpr std::array<OptionKey, 10> kNvmeKeys = {{
    {"enabled", BoolField{TERRACE_MEMBER(nvme.enabled)},
     "Whether objects are written to a file system and survive a restart."},
    {"directory", PathField{TERRACE_MEMBER(nvme.directory), kMaxPathBytes},
     "Where segment files and their index live. Must be on a file system with O_DIRECT.",
     "state_dir/nvme", "\"/var/lib/terrace/nvme\""},
    {"capacity",
     SizeField{TERRACE_MEMBER(nvme.capacity),
               {16 * kMiB, 1024 * kTiB, 1, "what the file system has free"}},
     "Hard limit on segment files. A percentage counts what the tier already holds as free, so it "
     "does not shrink from restart to restart. At least two segments. Can be changed while the "
     "daemon "
     "runs."},
    {"segment_size", SizeField{TERRACE_MEMBER(nvme.segment_size), {4 * kMiB, 8 * kGiB, kPage, ""}},
     "Size of one segment file, the unit of reclamation. An object must fit one."},
    {"queue_depth", IntegerField{TERRACE_MEMBER(nvme.queue_depth), 1, 1024},
     "I/O requests in flight at the device. More is more throughput and a longer wait for a "
     "demand read. Speed only."},
    {"piece_size", SizeField{TERRACE_MEMBER(nvme.piece_size), {64 * kKiB, 16 * kMiB, kPage, ""}},
     "Transfers are cut into pieces of this size so that demand overtakes. Speed only."},
    {"max_pending_writes",
     SizeField{TERRACE_MEMBER(nvme.max_pending_writes), {kMiB, 64 * kGiB, 1, ""}},
     "Payload queued for writing; past it objects stay in host memory only, and that is counted."},
    {"admission", ChoiceField{TERRACE_MEMBER(nvme.admission), kAdmission},
     "Which objects are written: auto, those used twice, pinned, or whose expected saving exceeds "
     "what writing them costs; always, all; second-touch, those used twice or pinned."},
    {"read_limit", SizeField{TERRACE_MEMBER(nvme.read_limit), {0, kTiB, 1, ""}},
     "Bytes read from the device a second, at most: leaves the rest of a shared device to others. "
     "0: no limit."},
    {"write_budget", SizeField{TERRACE_MEMBER(nvme.write_budget), {0, 1024 * kTiB, 1, ""}},
     "Bytes written to the device in any 24 hours, everything included, also across restarts; past "
     "it objects stay in host memory only, and that is counted. 0: no limit."},
}};

constexpr std::array<OptionKey, 4> kCodecKeys = {{
    {"quality", QualityField{TERRACE_MEMBER(codec.quality)},
     "How far KV that comes back from a lower tier may be from what was stored, as the mean KL "
     "divergence in nats it costs the model: lossless, none; near, 0.001; balanced, 0.01; archive, "
     "0.05; kl:X, that much. Anything but lossless needs a profile of the model (terrace "
     "calibrate), or makes do with statistics of its first chunks."},
    {"select", ChoiceField{TERRACE_MEMBER(codec.select), kSelect},
     "How KV is encoded below host memory: auto, as is expected to be back soonest at the measured "
     "bandwidth and decoding speed, within the quality; else always that codec, or that form of a "
     "profile, where the quality allows it."},
    {"profiles", PathField{TERRACE_MEMBER(codec.profiles), kMaxPathBytes},
     "Profiles that terrace calibrate wrote (*.tkvp), read at the start. What was encoded with a "
     "profile needs it to be read: the daemon keeps a copy of each it used in state_dir/profiles.",
     "state_dir/profiles", "\"/var/lib/terrace/profiles\""},
    {"threads", IntegerField{TERRACE_MEMBER(codec.threads), 0, 256},
     "Threads that encode and decode. 0: half the cores, at least one. Speed only."},
}};

constexpr SizeRange kFloorRange = {0, 64 * kTiB, 1, "the tenant's host memory"};
constexpr SizeRange kCeilingRange = {kPage, 64 * kTiB, 1, "the tenant's host memory"};

constexpr std::array<OptionKey, 8> kPlacementKeys = {{
    {"kv_floor", SizeField{TERRACE_MEMBER(placement.limits[0].floor), kFloorRange},
     "Host memory of a tenant that other kinds do not take from KV."},
    {"kv_ceiling", SizeField{TERRACE_MEMBER(placement.limits[0].ceiling), kCeilingRange},
     "Host memory of a tenant above which KV give way first, and take only what is free."},
    {"expert_floor", SizeField{TERRACE_MEMBER(placement.limits[1].floor), kFloorRange},
     "Host memory of a tenant that other kinds do not take from expert weights."},
    {"expert_ceiling", SizeField{TERRACE_MEMBER(placement.limits[1].ceiling), kCeilingRange},
     "Host memory of a tenant above which expert weights give way first, and take only what is "
     "free."},
    {"document_floor", SizeField{TERRACE_MEMBER(placement.limits[2].floor), kFloorRange},
     "Host memory of a tenant that other kinds do not take from documents."},
    {"document_ceiling", SizeField{TERRACE_MEMBER(placement.limits[2].ceiling), kCeilingRange},
     "Host memory of a tenant above which documents give way first, and take only what is free."},
    {"opaque_floor", SizeField{TERRACE_MEMBER(placement.limits[3].floor), kFloorRange},
     "Host memory of a tenant that other kinds do not take from objects of other kinds."},
    {"opaque_ceiling", SizeField{TERRACE_MEMBER(placement.limits[3].ceiling), kCeilingRange},
     "Host memory of a tenant above which objects of other kinds give way first, and take only "
     "what is free."},
}};

constexpr std::array<OptionKey, 1> kPrefetchKeys = {{
    {"enabled", BoolField{TERRACE_MEMBER(prefetch.enabled)},
     "Whether objects that engines announce are brought from the NVMe tier to host memory before "
     "they are asked for, where that is expected to pay. Without, hints decide only what stays. "
     "Turn it off to keep all of a shared device for what is waited for."},
}};

constexpr std::array<OptionKey, 8> kRespKeys = {{
    {"listen", AddressField{TERRACE_MEMBER(resp.listen)},
     "Where clients of Redis connect. Their objects are the tenant's own, apart from those of "
     "other "
     "clients: see docs/engines/resp.md.",
     "off", "\"127.0.0.1:6380\""},
    {"allow_remote", BoolField{TERRACE_MEMBER(resp.allow_remote)},
     "Whether listen may be an address that other machines reach. Nothing is encrypted, and who "
     "can "
     "connect reads and removes what others stored."},
    {"password_file", PathField{TERRACE_MEMBER(resp.password_file), kMaxPathBytes},
     "File whose first line is the password that clients must give to AUTH.", "no password",
     "\"/etc/terrace/resp.password\""},
    {"tenant", NameField{TERRACE_MEMBER(resp.tenant), 64},
     "The tenant whose memory and keys the front-end uses.", "the only tenant", "\"research\""},
    {"max_value", SizeField{TERRACE_MEMBER(resp.max_value), {kKiB, 3 * kGiB, 1, ""}},
     "Longest value; a longer one is received, dropped, and answered with an error."},
    {"max_clients", IntegerField{TERRACE_MEMBER(resp.max_clients), 1, 65536},
     "Connections at the same time; one more is told so and closed."},
    {"exists_lease_ms", IntegerField{TERRACE_MEMBER(resp.exists_lease_ms), 0, 60000},
     "How long a value that EXISTS found in host memory stays there at least, as its GET is "
     "usually "
     "next. At most a quarter of the tenant's memory is held so. 0: not held."},
    {"lmcache", BoolField{TERRACE_MEMBER(resp.lmcache)},
     "Answers as LMCache's client needs it where it would lose its place in the stream: a GET that "
     "misses gets an error line as long as the header of the value would be, a SET without room "
     "+OK, "
     "as if evicted at once."},
}};

constexpr std::array<OptionKey, 13> kTenantKeys = {{
    {"name", NameField{TERRACE_TENANT(name), 64},
     "Names the tenant in logs, metrics and stored records. Two tenants cannot share one.",
     "required", "\"research\""},
    {"uids", UidsField{TERRACE_TENANT(uids)},
     "User ids whose processes are this tenant. A uid belongs to one tenant; others are refused.",
     "required", "[1000, 1001]"},
    {"salt", SaltField{TERRACE_TENANT(salt)},
     "Secret that all keys of the tenant are hashed under. Set it only to share stored objects "
     "between machines; keep the file unreadable to others then.",
     "derived from a random secret in state_dir",
     "\"<64 hexadecimal digits, e.g. from: openssl rand -hex 32>\""},
    {"host_capacity",
     OptionalSizeField{TERRACE_TENANT(host_capacity), {4 * kMiB, 64 * kTiB, 1, "host.capacity"}},
     "The tenant's part of host memory. All parts together must not exceed host.capacity.",
     "an equal share of what the others leave", "\"50%\""},
    {"nvme_capacity",
     OptionalSizeField{TERRACE_TENANT(nvme_capacity), {4 * kMiB, 1024 * kTiB, 1, "nvme.capacity"}},
     "The most that the tenant's records may take of the NVMe tier. Past it the tenant's own "
     "records "
     "give way, those longest unused first. All parts together must not exceed nvme.capacity.",
     "no limit but nvme.capacity", "\"50%\""},
    {"kv_floor", OptionalSizeField{TERRACE_TENANT(limits[0].floor), kFloorRange},
     "The tenant's own placement.kv_floor.", "placement.kv_floor", "\"10%\""},
    {"kv_ceiling", OptionalSizeField{TERRACE_TENANT(limits[0].ceiling), kCeilingRange},
     "The tenant's own placement.kv_ceiling.", "placement.kv_ceiling", "\"90%\""},
    {"expert_floor", OptionalSizeField{TERRACE_TENANT(limits[1].floor), kFloorRange},
     "The tenant's own placement.expert_floor.", "placement.expert_floor", "\"10%\""},
    {"expert_ceiling", OptionalSizeField{TERRACE_TENANT(limits[1].ceiling), kCeilingRange},
     "The tenant's own placement.expert_ceiling.", "placement.expert_ceiling", "\"90%\""},
    {"document_floor", OptionalSizeField{TERRACE_TENANT(limits[2].floor), kFloorRange},
     "The tenant's own placement.document_floor.", "placement.document_floor", "\"10%\""},
    {"document_ceiling", OptionalSizeField{TERRACE_TENANT(limits[2].ceiling), kCeilingRange},
     "The tenant's own placement.document_ceiling.", "placement.document_ceiling", "\"90%\""},
    {"opaque_floor", OptionalSizeField{TERRACE_TENANT(limits[3].floor), kFloorRange},
     "The tenant's own placement.opaque_floor.", "placement.opaque_floor", "\"10%\""},
    {"opaque_ceiling", OptionalSizeField{TERRACE_TENANT(limits[3].ceiling), kCeilingRange},
     "The tenant's own placement.opaque_ceiling.", "placement.opaque_ceiling", "\"90%\""},
}};

#undef TERRACE_MEMBER
#undef TERRACE_TENANT

constexpr std::array<OptionSection, 10> kSections = {{
    {"server", "The daemon itself.", false, kServerKeys},
    {"limits",
     "What one client may ask for. Past a limit the caller is told \"resource exhausted\" at once "
     "and nothing stalls.",
     false, kLimitsKeys},
    {"host", "The host memory tier.", false, kHostKeys},
    {"hbm",
     "The HBM tier: memory of a device, above host memory. Objects are moved to it when a lease "
     "asks for them there, or ahead of that by hints; floors and ceilings of kinds count what is "
     "in host memory and on the device together.",
     false, kHbmKeys},
    {"nvme", "The NVMe tier.", false, kNvmeKeys},
    {"codec", "How KV is encoded on its way to tiers below host memory.", false, kCodecKeys},
    {"placement",
     "What kinds of objects may have of each tenant's host memory. Between floor and ceiling they "
     "compete: what is expected to cost the most time a byte, if it were gone, stays. The floors "
     "must fit together.",
     false, kPlacementKeys},
    {"prefetch", "Moving objects up by the hints of engines.", false, kPrefetchKeys},
    {"resp", "The front-end that speaks the protocol of Redis (RESP) over TCP.", false, kRespKeys},
    {"tenants",
     "Who may connect, decided by the user id the kernel reports for the peer. Without any, the "
     "user that runs the daemon is the only tenant, \"default\". Tenants share no keys and no "
     "memory.",
     true, kTenantKeys},
}};

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    quoted.push_back(c);
  }
  quoted.push_back('"');
  return quoted;
}

struct AcceptedVisitor {
  std::string operator()(const PathField& f) const {
    return absl::StrCat("an absolute path of at most ", f.max_bytes, " bytes");
  }
  std::string operator()(const NameField& f) const {
    return absl::StrCat("1 .. ", f.max_bytes, " of the characters A-Z a-z 0-9 . _ -");
  }
  std::string operator()(const ChoiceField& f) const {
    std::vector<std::string> quoted;
    for (std::string_view choice : f.choices) quoted.push_back(Quoted(choice));
    return absl::StrCat("one of ", absl::StrJoin(quoted, " "));
  }
  std::string operator()(const BoolField&) const { return "true or false"; }
  std::string operator()(const IntegerField& f) const {
    return absl::StrCat("a whole number, ", f.min, " .. ", f.max);
  }
  std::string operator()(const SizeField& f) const { return Sizes(f.range); }
  std::string operator()(const OptionalSizeField& f) const { return Sizes(f.range); }
  std::string operator()(const QualityField&) const {
    return "one of \"lossless\" \"near\" \"balanced\" \"archive\", or \"kl:X\" with X 0.0001 .. 1";
  }
  std::string operator()(const AddressField&) const {
    return "an IPv4 address, or an IPv6 address in brackets, and a port: \"127.0.0.1:6380\"";
  }
  std::string operator()(const UidsField&) const {
    return absl::StrCat("a list of 1 .. ", kMaxUidsPerTenant, " user ids, each 0 .. ", kMaxUid);
  }
  std::string operator()(const SaltField&) const { return "64 hexadecimal digits"; }

  static std::string Sizes(const SizeRange& range) {
    std::string text = absl::StrCat("a size, ", FormatSize(Size::Bytes(range.min_bytes)), " .. ",
                                    FormatSize(Size::Bytes(range.max_bytes)));
    if (range.multiple_bytes > 1) {
      absl::StrAppend(&text, ", a multiple of ", FormatSize(Size::Bytes(range.multiple_bytes)));
    }
    if (!range.share_of.empty()) {
      absl::StrAppend(&text, "; or 1% .. 100% of ", Sv(range.share_of));
    }
    return text;
  }
};

struct RenderVisitor {
  using Result = std::optional<std::string>;
  Options& options;
  size_t tenant;

  Result operator()(const PathField& f) const {
    return QuotedUnlessEmpty(f.member(options, tenant));
  }
  Result operator()(const NameField& f) const {
    return QuotedUnlessEmpty(f.member(options, tenant));
  }
  Result operator()(const AddressField& f) const {
    return QuotedUnlessEmpty(f.member(options, tenant));
  }
  Result operator()(const ChoiceField& f) const { return Quoted(f.member(options, tenant)); }
  Result operator()(const BoolField& f) const {
    return f.member(options, tenant) ? "true" : "false";
  }
  Result operator()(const IntegerField& f) const { return absl::StrCat(f.member(options, tenant)); }
  Result operator()(const SizeField& f) const {
    return Quoted(FormatSize(f.member(options, tenant)));
  }
  Result operator()(const OptionalSizeField& f) const {
    const std::optional<Size>& size = f.member(options, tenant);
    return size ? Result(Quoted(FormatSize(*size))) : Result();
  }
  Result operator()(const QualityField& f) const { return Quoted(f.member(options, tenant)); }
  Result operator()(const UidsField& f) const {
    return absl::StrCat("[", absl::StrJoin(f.member(options, tenant), ", "), "]");
  }
  Result operator()(const SaltField& f) const {
    const std::optional<Salt>& salt = f.member(options, tenant);
    return salt ? Result(Quoted(ObjectKey{*salt}.ToHex())) : Result();
  }

  static Result QuotedUnlessEmpty(const std::string& text) {
    return text.empty() ? Result() : Quoted(text);
  }
};

}  // namespace

absl::Span<const OptionSection> OptionSections() { return kSections; }

std::string Accepted(const OptionField& field) { return std::visit(AcceptedVisitor{}, field); }

std::optional<std::string> Rendered(const OptionField& field, Options& options, size_t tenant) {
  return std::visit(RenderVisitor{options, tenant}, field);
}

}  // namespace terrace
