// Which segments there are, where the next record goes, and which segment gives way when there is
// no more room. Bookkeeping only, no I/O. Not thread-safe: loop thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tiers/nvme/record_index.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

// What lies together: records of a lifetime, or of one of the tenants that are kept apart.
using RecordClass = uint64_t;

struct Segment {
  enum class State : uint8_t {
    kClean,     // holds nothing that is wanted; its file is ready for use, or being made so
    kOpen,      // appended to
    kSealing,   // full: its footer and row are to be written once its last record is durable
    kSealed,    //
    kDraining,  // giving way: what is wanted of it is being written elsewhere
  };

  std::shared_ptr<SegmentFile> file;
  State state = State::kClean;
  bool sealing_begun = false;  // the footer is on its way
  bool unusable = false;       // its file could not be prepared: it goes once nothing uses it
  bool unmovable = false;      // there was no room elsewhere for what is pinned in it
  uint32_t reads = 0;          // under way: the segment must not be reclaimed
  uint32_t writes = 0;         // not yet durable: neither
  uint64_t append_offset = 0;  // where the next record goes, when it is open
  uint64_t entries_bytes = 0;  // that a footer for what was placed here would hold
  uint64_t live_bytes = 0;     // of records that can be read
  uint64_t wanted_bytes = 0;   // of them used or pinned
  uint64_t pinned_bytes = 0;   // of them pinned
  uint64_t order = 0;          // of opening
  RecordClass record_class = 0;
  // Every record put here, in the order they became durable. Those erased since stay listed; their
  // ids may have been given to records elsewhere.
  std::vector<RecordId> records;
  // Of a segment that is not sealed: what its footer will say of its records.
  std::vector<std::pair<RecordId, std::string>> entries;
};

class SegmentTable {
 public:
  struct Options {
    std::string directory;
    uint64_t capacity_bytes = 0;
    uint64_t segment_bytes = 0;
    ReclaimPolicy reclaim = ReclaimPolicy::kReuse;
  };
  explicit SegmentTable(Options options);

  // Both tell which segments are open to a class of records there is no longer: to be closed by the
  // caller.
  std::vector<Segment*> SetCapacity(uint64_t bytes);
  // Records of these tenants lie in segments of their own, where there are segments enough. Of
  // these segments nothing that lives is taken to be unwanted: a tenant that is within its part
  // keeps it, whatever others write.
  std::vector<Segment*> KeepApart(std::set<uint32_t> tenant_ids);
  uint64_t capacity_bytes() const { return options_.capacity_bytes; }
  // More is used than the capacity, since it became smaller.
  bool over() const { return used_bytes_ > options_.capacity_bytes; }

  // A segment of an earlier run. Its records are added by Count().
  Segment& AddRecovered(std::shared_ptr<SegmentFile> file, Segment::State state);
  // A file that is not ours, or cannot be read: its id is not given again, and its bytes count.
  void LeaveAlone(const SegmentFile& file);
  bool IsLeftAlone(uint32_t id) const { return left_alone_.contains(id); }
  // Null when there is no such segment.
  Segment* Find(uint32_t id);
  // Its file is gone. Requires that nothing uses it.
  void Remove(uint32_t id);

  // Records of different classes lie in different segments, unless there are too few of those.
  RecordClass ClassOf(Lifetime lifetime, uint32_t tenant_id) const;
  // The segment that records of the class go to, or null.
  Segment* open(RecordClass record_class) const;
  // Makes it that one, or none.
  void SetOpen(RecordClass record_class, Segment* segment);
  // None of a class is this one any longer.
  void Close(const Segment& segment);
  // Records of the class may be placed in a segment that was taken.
  void Begin(Segment& segment, RecordClass record_class);
  bool Fits(const Segment& segment, uint64_t record_bytes, uint64_t entry_bytes) const;
  // Takes the room: the record's offset. Requires Fits().
  uint64_t Append(Segment& segment, uint64_t record_bytes, uint64_t entry_bytes);
  // The length of a file that holds this record: segment_bytes, or more for one that is longer.
  uint64_t FileBytesFor(uint64_t record_bytes, uint64_t entry_bytes) const;

  // A segment to be opened, clean or (fresh) with a file that is yet to be made; null when
  // something must give way first. The last ones are kept for what is written once more.
  Segment* TakeClean(uint64_t file_bytes, bool reclaiming, bool& fresh);
  // Whether a segment should give way now, so that opening one need not wait.
  bool WantsReclaim() const;
  // The segment that gives way first; null when none may.
  Segment* Victim();
  // Whether something is under way after which a segment may give way that may not now.
  bool busy() const;
  // Null without any.
  Segment* AnyClean();
  // More are clean than are to be kept ready.
  bool has_clean_reserve() const { return clean_.size() > clean_reserve_; }
  // The clock that segments are ordered by goes on from here.
  void SetClock(uint64_t clock) { clock_ = clock; }
  // The segment, which nothing uses, begins a new generation with nothing in it. Returns what it
  // was before, whose file has lost its descriptor to the new one.
  Segment Recycle(Segment& segment);

  // A record of it was used. Where there is no room to write it once more, the segment lasts
  // longer.
  void Use(Segment& segment);
  // A record appears in, or (sign -1) disappears from a segment.
  void Count(Segment& segment, const RecordIndex::Record& record, int sign);

  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t size() const { return segments_.size(); }
  uint64_t clean() const { return clean_.size(); }
  std::map<uint32_t, Segment>& all() { return segments_; }

 private:
  bool MayReclaim(const Segment& segment) const;
  double Benefit(const Segment& segment) const;
  // Segments that could be opened without one giving way.
  uint64_t Available() const;

  void ChooseClasses();
  std::vector<Segment*> WithoutClass() const;
  bool KeptApart(RecordClass record_class) const { return record_class >= kLifetimes; }

  Options options_;
  int classes_ = 1;
  uint64_t reclaim_reserve_ = 0;          // segments that only reclamation may open
  uint64_t clean_reserve_ = 0;            // segments to have ready, those included
  std::map<uint32_t, Segment> segments_;  // by id
  std::map<RecordClass, Segment*> open_;
  std::set<uint32_t> apart_;
  std::set<uint32_t> clean_, left_alone_;
  uint32_t next_id_ = 1;
  uint64_t used_bytes_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace terrace::nvme
