// The subcommands of `terrace`. Each takes its parsed options, prints to stdout (people or JSON;
// progress and errors go to stderr) and returns the process's exit code. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/connection.h"

namespace terrace::cli {

// Documented in --help and docs/cli.md; scripts rely on the numbers.
enum ExitCode : int {
  kOk = 0,
  kError = 1,
  kUsage = 2,
  kNotReachable = 3,
  kCorruptionFound = 4,
  kNotFound = 5,
};

struct GlobalOptions {
  std::string socket;  // empty: the default of a daemon without configuration
  std::string tenant;  // empty: the only tenant this uid belongs to
  bool json = false;
};

// Opens a session, or prints why not and sets `exit_code`; null then.
std::unique_ptr<Connection> Connect(const GlobalOptions& options, int& exit_code);
// Prints "terrace: ..." to stderr (and {"error", "code"} to stdout with --json) and returns the
// exit code of a failed call: kNotFound, kNotReachable or kError.
int Fail(const GlobalOptions& options, std::string_view what, const absl::Status& status);

int RunStatus(const GlobalOptions& options);

struct TopOptions {
  double interval_s = 1.0;
  uint32_t count = 0;  // samples, 0: until q or Ctrl-C
};
int RunTop(const GlobalOptions& options, const TopOptions& top);

// Hit rates that other sizes of the tiers would have, from the daemon's miss-ratio curves.
int RunMrc(const GlobalOptions& options);

struct ListOptions {
  uint64_t limit = 100;  // 0: all
  std::string prefix;    // hexadecimal digits
};
int RunList(const GlobalOptions& options, const ListOptions& list);
int RunShow(const GlobalOptions& options, const std::string& key);
int RunRemove(const GlobalOptions& options, const std::vector<std::string>& keys);
int RunPin(const GlobalOptions& options, const std::vector<std::string>& keys, bool pinned);

int RunFlush(const GlobalOptions& options, double timeout_s);
int RunVerify(const GlobalOptions& options);

struct ResizeOptions {
  std::string tier, size;  // as typed
  std::string tenant;      // empty: the whole tier
  bool wait = true;
};
int RunResize(const GlobalOptions& options, const ResizeOptions& resize);

struct StoreInspectOptions {
  std::string directory;
  bool records = false;  // each of them, too
};
// Needs no daemon, and none may serve the directory.
int RunStoreInspect(const GlobalOptions& options, const StoreInspectOptions& inspect);

// Encoded KV and profiles in files. Need no daemon.
int RunCodecList(const GlobalOptions& options);
int RunCodecShow(const GlobalOptions& options, const std::string& path);
struct CodecVerifyOptions {
  std::string path;
  std::string profile;  // empty: none
};
int RunCodecVerify(const GlobalOptions& options, const CodecVerifyOptions& verify);
int RunCodecBench(const GlobalOptions& options);

// Traces through the eviction policies. Needs no daemon.
struct ReplayCommand {
  std::string trace;
  std::string component = "passages";             // RAGPulse: several with commas
  std::string policy = "default";                 // several with commas, or all
  std::string capacity_objects, capacity_tokens;  // one of the two; several with commas
  std::string semantics = "block";
  uint32_t window = 0;  // requests
  double flip = 0;      // of the bits of succinct predictions
  uint64_t seed = 1;
  bool gap = false;  // also replay lru and min
  std::string plot;  // a PNG; empty: none
  // HBM, host and NVMe instead of one tier, as key=value with commas.
  bool has_tiers = false;
  std::string tiers;
  std::string hints = "queue";  // off, queue, random
  double wrong_hints = 0;       // share of them
  bool backlog = false;         // all requests wait from the start
};
int RunReplay(const GlobalOptions& options, const ReplayCommand& replay);
// What --tiers prints. InvalidArgument for an option.
absl::StatusOr<std::string> ReplayTiers(const GlobalOptions& options, const ReplayCommand& replay);
std::string ReplayPolicies();  // a line each, for --help

int RunConfigCheck(const GlobalOptions& options, const std::string& path);
struct ConfigShowOptions {
  std::string path;        // empty: the defaults
  bool effective = false;  // sizes in bytes, paths as the daemon would use them
};
int RunConfigShow(const GlobalOptions& options, const ConfigShowOptions& show);

// Becomes `python3 -m terrace_kv calibrate` ($TERRACE_PYTHON: another interpreter); returns only
// when that cannot be run.
int RunCalibrate(const std::vector<std::string>& arguments);

int RunVersion(const GlobalOptions& options);

}  // namespace terrace::cli
