// The directory of a store: its lock, its superblocks, where its files are. Blocking: at Open, and
// WriteSuperblock on the meta thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "tiers/nvme/segment_format.h"
#include "tiers/nvme/system.h"
#include "tiers/nvme/write_budget.h"

namespace terrace::nvme {

// One copy. NotFound when there is none, FailedPrecondition for another version, DataLoss when it
// does not check.
absl::StatusOr<Superblock> ReadSuperblock(System& system, const std::string& path);

// Holds the directory's lock for as long as it lives.
class StoreDirectory {
 public:
  // Creates what is absent, for the owner's eyes only. PermissionDenied or FailedPrecondition
  // naming the directory when it cannot be used; FailedPrecondition naming the holder when a live
  // process has it, and for a superblock of an unknown version: nothing is changed then. One that
  // is damaged or lost is made anew from the other copy; with both gone, from what the segments
  // say.
  static absl::StatusOr<StoreDirectory> Open(System& system, const std::string& path,
                                             uint64_t segment_bytes);
  // For tools that change nothing: a shared lock. NotFound when it is no store.
  static absl::StatusOr<StoreDirectory> OpenReadOnly(System& system, const std::string& path);

  StoreDirectory() = default;
  StoreDirectory(StoreDirectory&& other) noexcept;
  StoreDirectory& operator=(StoreDirectory&& other) noexcept;
  ~StoreDirectory();

  const StoreId& store_id() const { return superblock_.store_id; }  // any thread
  const Superblock& superblock() const { return superblock_; }      // as it was read
  // What was wrong with the superblocks and has been mended; empty: nothing.
  const std::string& finding() const { return finding_; }
  std::string segments() const { return path_ + "/segments"; }
  std::string index() const { return path_ + "/index"; }
  // Writes the older copy with this budget: durable on return. One thread at a time.
  absl::Status WriteSuperblock(const WriteBudget::Saved& budget, bool closed);
  // Moves an index that cannot be trusted out of the way, to index.corrupt-N. Returns its new name.
  absl::StatusOr<std::string> MoveIndexAside() const;

 private:
  absl::Status Lock(bool shared);
  absl::Status LoadSuperblocks();
  absl::Status AdoptSegments(bool may_be_new);
  absl::Status CreateSuperblocks(uint64_t segment_bytes);
  std::string SuperblockPath(uint64_t epoch) const;  // of the copy that epoch is written to

  System* system_ = nullptr;
  std::string path_;
  int lock_fd_ = -1;
  Superblock superblock_;  // epoch 0: none
  std::string finding_;
};

}  // namespace terrace::nvme
