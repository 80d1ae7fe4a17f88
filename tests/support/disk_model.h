// What a disk may have lost: of each file the blocks written since its last sync, with what was
// there before, and the blocks that a fault damaged. PowerCut() leaves each block that is not
// synced as it was, as written, or some sectors of each.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "config/object_key.h"
#include "tiers/nvme/io_engine.h"

namespace terrace {

class DiskModel {
 public:
  using Random = std::mt19937_64;

  // A descriptor now names `path`. `created`: the file was not there before; `emptied`: it is now.
  void Opened(int fd, const std::string& path, bool created, bool emptied);
  void Removed(const std::string& path);
  void Renamed(const std::string& from);
  void DirectorySynced(const std::string& directory);

  // Bytes are about to be written; were written. Between the two, a sync says nothing about them.
  void WriteBegun(int fd, uint64_t offset, uint64_t bytes);
  void WriteEnded(int fd, uint64_t offset, uint64_t bytes);
  // All writes that ended before the sync began are durable once it has succeeded.
  uint64_t SyncBegun(int fd);
  void SyncEnded(int fd, uint64_t begun);

  // Remembers where the records lie whose headers are in `op`, a write as the tier meant it.
  void NoteRecords(const nvme::IoOp& op);
  // What is in these blocks is no longer what was meant to be, or is again.
  void Damage(int fd, uint64_t offset, uint64_t bytes);
  void Mend(int fd, uint64_t offset, uint64_t bytes);
  // Whether damage hit a record of the object.
  bool IsDamaged(const ObjectKey& key) const;

  // Writes the whole `op`, some of its sectors or none. As a disk would that says it was written.
  bool WriteTorn(const nvme::IoOp& op, Random& random);
  // Writes it somewhere else in the file.
  bool WriteElsewhere(const nvme::IoOp& op, Random& random);

  void PowerCut(Random& random);

 private:
  struct Unsynced {
    std::vector<uint8_t> before;
    uint64_t written = 0;  // when, by clock_; 0: it is being written
  };
  struct Extent {
    uint64_t end = 0;
    ObjectKey key;
  };
  struct File {
    int fd = -1;                            // our own, for direct I/O
    std::map<uint64_t, Unsynced> unsynced;  // by block
    std::set<uint64_t> damaged;             // blocks
    std::map<uint64_t, Extent> records;     // by offset
  };

  File& FileOf(int fd);
  void CutPower(File& file, uint64_t policy, Random& random);

  std::map<int, std::string> paths_;  // of descriptors
  std::map<std::string, File> files_;
  std::set<std::string> new_names_;  // created since their directory was synced
  uint64_t clock_ = 0;
};

}  // namespace terrace
