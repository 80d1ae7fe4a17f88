#include "tiers/nvme/footer_reader.h"

#include <algorithm>
#include <utility>

namespace terrace::nvme {

namespace {

constexpr size_t kThreads = 4;
constexpr size_t kAhead = 16;  // segments whose entries are in memory and not yet taken

}  // namespace

FooterReader::FooterReader(System& system, const StoreId& store_id,
                           std::vector<const SegmentFile*> files)
    : system_(system), store_id_(store_id), files_(std::move(files)) {
  footers_.resize(files_.size(), absl::UnknownError("not read"));
  entries_.resize(files_.size());
  for (size_t i = 0; i < std::min(kThreads, files_.size()); ++i) {
    threads_.emplace_back([this] { Run(); });
  }
}

FooterReader::~FooterReader() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FooterReader::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (next_footer_ < files_.size() && !stopping_) {
    const size_t i = next_footer_++;
    lock.unlock();
    absl::StatusOr<Footer> footer = ReadFooter(system_, *files_[i], store_id_);
    lock.lock();
    footers_[i] = std::move(footer);
    if (++footers_done_ == files_.size()) changed_.notify_all();
  }
  changed_.wait(lock, [this] { return footers_done_ == files_.size() || stopping_; });
  while (true) {
    changed_.wait(lock, [this] {
      return stopping_ || next_entries_ == files_.size() || next_entries_ < taken_ + kAhead;
    });
    if (stopping_ || next_entries_ == files_.size()) return;
    const size_t i = next_entries_++;
    const absl::StatusOr<Footer> footer = footers_[i];
    lock.unlock();
    absl::StatusOr<FooterEntries> entries = ReadFooterEntries(system_, *files_[i], footer);
    lock.lock();
    entries_[i] = std::move(entries);
    changed_.notify_all();
  }
}

uint64_t FooterReader::record_count() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return footers_done_ == files_.size(); });
  uint64_t records = 0;
  for (const absl::StatusOr<Footer>& footer : footers_) {
    if (footer.ok()) records += footer->record_count;
  }
  return records;
}

absl::StatusOr<FooterEntries> FooterReader::Take(size_t i) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return entries_[i].has_value(); });
  absl::StatusOr<FooterEntries> entries = *std::exchange(entries_[i], std::nullopt);
  ++taken_;
  changed_.notify_all();
  return entries;
}

}  // namespace terrace::nvme
