// restart: how long a daemon with 1,000,000 records on NVMe is away, with its index and without,
// and what the index costs in memory.
#include <malloc.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/fio.h"
#include "bench/private_daemon.h"
#include "bench/record_store.h"
#include "tests/support/test_loop.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kRecords = 1'000'000;
constexpr uint64_t kCapacityBytes = uint64_t{12} << 30;
constexpr int kPairs = 7;
constexpr uint64_t kMiB = 1 << 20;
constexpr char kName[] = "restart";
// The bar: 64 bytes an object, and its key.
constexpr double kBarIndexBytes = 64 + sizeof(ObjectKey);

// Seconds from the start of a daemon to its first answer that finds a record. Stops it again.
absl::StatusOr<double> TimeToFirstLookup(const Context& context,
                                         const std::vector<ObjectKey>& keys) {
  DaemonConfig config;
  config.host_bytes = 64 * kMiB;
  config.nvme_bytes = kCapacityBytes;
  config.keep_directory = true;
  config.start_timeout_s = 120;
  const double start = NowSeconds();
  const auto daemon = PrivateDaemon::Start(context, kName, config);
  if (!daemon.ok()) return daemon.status();
  const auto connection = (*daemon)->Connect();
  if (!connection.ok()) return connection.status();
  const auto layout = (*connection)->RegisterLayout(RecordGeometry().Layout());
  if (!layout.ok()) return layout.status();
  std::vector<ExtentInfo> extents;
  absl::Status status = (*connection)->Lookup(*layout, {&keys.front(), 1}, extents);
  const double seconds = NowSeconds() - start;
  if (!status.ok()) return status;
  // Not only that one is there.
  uint64_t found = 0;
  for (const ObjectKey& key : keys) {
    extents.clear();
    status = (*connection)->Lookup(*layout, {&key, 1}, extents);
    if (!status.ok()) return status;
    found += extents.size();
  }
  if (found != keys.size()) {
    return absl::InternalError(absl::StrCat("found ", found, " of ", keys.size(), " records"));
  }
  return seconds;
}

absl::StatusOr<double> FioReadSeconds(const Context& context,
                                      const std::vector<std::string>& arguments) {
  const auto jobs = RunFio(context, arguments);
  if (!jobs.ok()) return jobs.status();
  if (jobs->front().read.seconds <= 0) return absl::InternalError("fio read nothing");
  return jobs->front().read.seconds;
}

absl::StatusOr<Row> MeasureFirstLookup(const Context& context, const std::string& directory,
                                       const std::vector<ObjectKey>& keys) {
  const std::string same_bytes = context.scratch_dir + "/fio.index";
  uint64_t index_bytes = 0;
  std::vector<Pair> pairs;
  double longest = 0;
  for (int i = 0; i < kPairs; ++i) {
    const auto dropped = DropIndexFromCache(directory);
    if (!dropped.ok()) return dropped.status();
    if (i == 0) {
      index_bytes = AlignUp(*dropped, kMiB);
      const absl::Status laid_out = LayOutFile(context, same_bytes, index_bytes);
      if (!laid_out.ok()) return laid_out;
    }
    const auto ours = TimeToFirstLookup(context, keys);
    if (!ours.ok()) return ours.status();
    const auto fio = FioReadSeconds(
        context, FioJobArguments("index", same_bytes, index_bytes, "read", "1M", 16));
    if (!fio.ok()) return fio.status();
    pairs.push_back({*ours, *fio});
    longest = std::max(longest, *ours);
    Progress(absl::StrFormat("restart first_lookup %d/%d: %.3f s, fio %.3f s", i + 1, kPairs, *ours,
                             *fio));
  }
  Row row = MakeRow("first_lookup_1M_records_s", "s", "fio reading as many bytes as the index has",
                    pairs);
  row.note = absl::StrFormat(
      "from exec to the answer, %d records; the bar is on the value: at most 1.0; the longest "
      "%.2f; the index has %.0f MiB and is not in the page cache",
      kRecords, longest, static_cast<double>(index_bytes) / kMiB);
  return row;
}

// A list of reads of up to 1 MiB that fio replays as fast as it can.
absl::Status WriteReadLog(const std::string& path, const std::vector<FileRange>& ranges) {
  std::ofstream file(path);
  file << "fio version 2 iolog\n";
  for (const FileRange& range : ranges) file << range.path << " add\n" << range.path << " open\n";
  for (const FileRange& range : ranges) {
    for (uint64_t at = 0; at < range.bytes; at += kMiB) {
      file << range.path << " read " << range.offset + at << " " << std::min(kMiB, range.bytes - at)
           << "\n";
    }
  }
  for (const FileRange& range : ranges) file << range.path << " close\n";
  file.flush();
  return file ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write ", path));
}

absl::StatusOr<Row> MeasureRebuild(const Context& context, const std::string& directory,
                                   const std::vector<ObjectKey>& keys) {
  const std::string log = context.scratch_dir + "/footers.iolog";
  std::vector<Pair> pairs;
  uint64_t footers = 0, bytes = 0;
  for (int i = 0; i < kPairs; ++i) {
    const auto ranges = FootersOf(directory);
    if (!ranges.ok()) return ranges.status();
    const absl::Status written = WriteReadLog(log, *ranges);
    if (!written.ok()) return written;
    footers = ranges->size();
    bytes = 0;
    for (const FileRange& range : *ranges) bytes += range.bytes;
    std::error_code error;
    std::filesystem::remove_all(IndexOf(directory), error);
    if (error) return absl::InternalError(absl::StrCat(directory, ": ", error.message()));
    const auto ours = TimeToFirstLookup(context, keys);
    if (!ours.ok()) return ours.status();
    const auto fio = FioReadSeconds(context, {"--name=footers", "--read_iolog=" + log,
                                              "--ioengine=io_uring", "--direct=1", "--iodepth=16"});
    if (!fio.ok()) return fio.status();
    pairs.push_back({*ours, *fio});
    Progress(
        absl::StrFormat("restart rebuild %d/%d: %.3f s, fio %.3f s", i + 1, kPairs, *ours, *fio));
  }
  Row row = MakeRow("rebuild_without_rocksdb_ratio", "s",
                    "fio reading the same footers, io_uring 1M x 16", pairs);
  row.note = absl::StrFormat(
      "from exec to the answer with the index deleted; %d footers, %.0f MiB; ours also scans the "
      "records of segments that have no footer yet",
      footers, static_cast<double>(bytes) / kMiB);
  return row;
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/status");
  std::string name;
  uint64_t kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    words >> name;
    if (name == "VmRSS:") words >> kib;
  }
  return kib * 1024;
}

uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

// In this process, so that what is there besides (the daemon's catalog) does not count.
absl::StatusOr<Row> MeasureIndexBytes(const std::string& directory) {
  std::vector<Pair> pairs;
  double heap = 0;
  for (int i = 0; i < kPairs; ++i) {
    TestLoop loop;
    malloc_trim(0);
    NvmeOptions options;
    options.directory = directory;
    options.capacity_bytes = kCapacityBytes;
    const uint64_t resident_before = ResidentBytes(), heap_before = HeapBytes();
    const auto tier = NvmeTier::Open(options, loop.post());
    if (!tier.ok()) return tier.status();
    const absl::Status status =
        (*tier)->Recover([](uint64_t) {}, [](RecordId, const RecordMeta&) {});
    if (!status.ok()) return status;
    malloc_trim(0);
    const auto records = static_cast<double>((*tier)->Stats().records);
    const uint64_t resident_after = ResidentBytes(), heap_after = HeapBytes();
    if (records < kRecords) return absl::InternalError(absl::StrCat(records, " records are left"));
    pairs.push_back(
        {(static_cast<double>(resident_after) - static_cast<double>(resident_before)) / records,
         kBarIndexBytes});
    heap = (static_cast<double>(heap_after) - static_cast<double>(heap_before)) / records;
  }
  Row row = MakeRow("index_bytes_per_object", "B", "the bar: 64 and a key of 32", pairs);
  row.note = absl::StrFormat(
      "growth of resident memory by Open and Recover, RocksDB included, a record; %.1f B of it in "
      "use on the heap; %d records",
      heap, kRecords);
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunRestart(const Context& context) {
  const std::string directory = PrivateDaemon::NvmeDirectory(context, kName);
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(directory).parent_path(), error);
  if (error) return absl::InternalError(absl::StrCat(directory, ": ", error.message()));
  const auto keys = MakeRecordStore(directory, kCapacityBytes, kRecords);
  if (!keys.ok()) return keys.status();
  const auto first_lookup = MeasureFirstLookup(context, directory, *keys);
  if (!first_lookup.ok()) return first_lookup.status();
  const auto index_bytes = MeasureIndexBytes(directory);
  if (!index_bytes.ok()) return index_bytes.status();
  const auto rebuild = MeasureRebuild(context, directory, *keys);
  if (!rebuild.ok()) return rebuild.status();
  std::filesystem::remove_all(context.scratch_dir + "/" + kName, error);
  return std::vector<Row>{*first_lookup, *rebuild, *index_bytes};
}

}  // namespace terrace::bench
