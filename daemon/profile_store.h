// The codec profiles a daemon knows: those the operator put in [codec] profiles, and copies of
// every one it encoded with, so that what is stored can be read later whatever happens to the
// former. Loop thread, but where it says so.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/profile.h"
#include "config/kv_geometry.h"

namespace terrace {

// Of a profile, what `codec.select` calls it: "archive", "balanced", "fast" or "fastest".
const char* FormName(const codec::Profile& profile);

struct StoredProfile {
  std::shared_ptr<const codec::Profile> profile;
  std::shared_ptr<const std::vector<uint8_t>> bytes;  // what it was parsed from
};
// InvalidArgument, DataLoss, FailedPrecondition as Profile::Parse. Any thread.
absl::StatusOr<StoredProfile> ParseStored(std::vector<uint8_t> bytes);

class ProfileStore {
 public:
  // Reads *.tkvp of both directories, either of which may be missing; files that are no profile are
  // logged and left alone.
  ProfileStore(const std::string& operators_directory, std::string own_directory);

  // Null when there is none of this hash.
  std::shared_ptr<const codec::Profile> Find(const Fingerprint& hash) const;
  // Those for KV of this model and geometry; of several of one form, the one that was read first.
  std::vector<StoredProfile> For(const KvGeometry& geometry) const;
  void Add(StoredProfile profile);

  const std::string& own_directory() const { return own_directory_; }

 private:
  void ReadDirectory(const std::string& directory);

  const std::string own_directory_;
  std::vector<StoredProfile> profiles_;  // as read
};

// Makes sure that a copy of the profile is in `directory`: to be called before anything that was
// encoded with it is stored. Unavailable when it cannot be written. Any thread; blocks.
absl::Status KeepProfile(const std::string& directory, const StoredProfile& stored);

}  // namespace terrace
