// Reads the footers of many segments ahead of whoever takes them, on threads of its own: one after
// the other they would take as long as the device takes to answer, once or twice a segment.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

class FooterReader {
 public:
  // Begins to read. The files outlive the reader.
  FooterReader(System& system, const StoreId& store_id, std::vector<const SegmentFile*> files);
  ~FooterReader();

  // The records that all footers together speak of. Waits until the last block of each was read.
  uint64_t record_count();
  // As ReadFooterEntries() of files[i]. In order, once each; waits for it.
  absl::StatusOr<FooterEntries> Take(size_t i);

 private:
  void Run();

  System& system_;
  const StoreId store_id_;
  const std::vector<const SegmentFile*> files_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  size_t next_footer_ = 0, footers_done_ = 0;
  size_t next_entries_ = 0, taken_ = 0;
  bool stopping_ = false;
  std::vector<absl::StatusOr<Footer>> footers_;
  std::vector<std::optional<absl::StatusOr<FooterEntries>>> entries_;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::nvme
