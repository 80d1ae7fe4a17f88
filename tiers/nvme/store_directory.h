// The directory of a store: its lock, its superblock, where its files are. Blocking; used at Open.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

// Holds the directory's lock for as long as it lives.
class StoreDirectory {
 public:
  // Creates what is absent, for the owner's eyes only. PermissionDenied or FailedPrecondition
  // naming the directory when it cannot be used; FailedPrecondition naming the holder when a live
  // process has it, and for a superblock that is unknown, damaged or lost: nothing is changed then.
  static absl::StatusOr<StoreDirectory> Open(const std::string& path, uint64_t segment_bytes);

  StoreDirectory() = default;
  StoreDirectory(StoreDirectory&& other) noexcept;
  StoreDirectory& operator=(StoreDirectory&& other) noexcept;
  ~StoreDirectory();

  const StoreId& store_id() const { return store_id_; }
  std::string segments() const { return path_ + "/segments"; }
  std::string index() const { return path_ + "/index"; }
  // Moves an index that cannot be trusted out of the way, to index.corrupt-N. Returns its new name.
  absl::StatusOr<std::string> MoveIndexAside() const;

 private:
  absl::Status Lock();
  absl::Status LoadOrCreateSuperblock(uint64_t segment_bytes);

  std::string path_;
  int lock_fd_ = -1;
  StoreId store_id_{};
};

}  // namespace terrace::nvme
