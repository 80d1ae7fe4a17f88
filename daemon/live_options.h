// What the daemon was told to run with, and which of it may change while it does: capacities and
// the log level, by a new configuration file or by an operator's call. Knows options only; the
// service applies them. Plain value; loop thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "config/options.h"

namespace terrace {

class LiveOptions {
 public:
  // `configured` as the operator wrote it, shares included; `resolved` as the daemon runs with it.
  LiveOptions(Options configured, Options resolved);

  const Options& resolved() const { return resolved_; }

  // What to run with from now on, by Accept(), and what that changes.
  struct Change {
    Options configured, resolved;
    std::vector<std::string> applied;       // keys that change
    std::vector<std::string> need_restart;  // keys that differ and stay as they are
  };
  // Of a configuration file read anew. InvalidArgument as ResolveOptions.
  absl::StatusOr<Change> Reload(Options configured) const;
  // NotFound: no such tier ("host" or "nvme"), or tenant (empty: all).
  absl::Status Find(std::string_view tier, std::string_view tenant) const;
  // Of a tier's size, or of one tenant's part of it. NotFound as Find. InvalidArgument as
  // ResolveOptions, or when it is more than the machine has.
  absl::StatusOr<Change> Resize(std::string_view tier, std::string_view tenant,
                                const Size& size) const;
  void Accept(Change change);

 private:
  // The live keys of `configured` taken over and resolved.
  absl::StatusOr<Change> Resolve(Options configured) const;

  Options configured_, resolved_;
};

}  // namespace terrace
