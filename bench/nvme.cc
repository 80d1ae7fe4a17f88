// nvme: the tier's reads, writes and CPU against fio, alternated on one file system.
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/fio.h"
#include "bench/tier_driver.h"

namespace terrace::bench {
namespace {

constexpr int kPairs = 7;
constexpr int kDepth = 16;
constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPhaseBytes = 2048 * kMiB;  // moved by each side of a pair
constexpr double kMixedSeconds = 5;            // of reads under writes, each side of a pair
constexpr uint64_t kMixedReads = 400;          // at least
constexpr double kBarCoresPerGbPerS = 0.30;

// What moving some bytes took.
struct Phase {
  double bytes = 0;
  double seconds = 0;
  double cpu_seconds = 0;
  double GbPerS() const { return bytes / seconds / 1e9; }
  double CpuSecondsPerGb() const { return cpu_seconds / (bytes / 1e9); }
};
struct PhasePair {
  Phase ours, reference;
};

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

template <typename Work>
absl::StatusOr<Phase> Measure(double bytes, Work&& work) {
  Phase phase;
  phase.bytes = bytes;
  const double cpu = CpuSeconds(), start = NowSeconds();
  const absl::Status status = work();
  if (!status.ok()) return status;
  phase.seconds = NowSeconds() - start;
  phase.cpu_seconds = CpuSeconds() - cpu;
  return phase;
}

// One pair to warm up, then kPairs; the sides take turns at going first.
template <typename Ours, typename Reference>
absl::StatusOr<std::vector<PhasePair>> Alternate(const char* row, Ours&& ours,
                                                 Reference&& reference) {
  std::vector<PhasePair> pairs;
  for (int i = -1; i < kPairs; ++i) {
    absl::StatusOr<Phase> first = i % 2 == 0 ? reference() : ours();
    if (!first.ok()) return first.status();
    absl::StatusOr<Phase> second = i % 2 == 0 ? ours() : reference();
    if (!second.ok()) return second.status();
    const PhasePair pair = i % 2 == 0 ? PhasePair{*second, *first} : PhasePair{*first, *second};
    Progress(absl::StrFormat("nvme %s %d/%d: %.2f GB/s, fio %.2f GB/s%s", row, std::max(i, 0) + 1,
                             kPairs, pair.ours.GbPerS(), pair.reference.GbPerS(),
                             i < 0 ? " (warming up)" : ""));
    if (i >= 0) pairs.push_back(pair);
  }
  return pairs;
}

Row BandwidthRow(const char* name, const char* reference, const std::vector<PhasePair>& phases) {
  std::vector<Pair> pairs;
  for (const PhasePair& pair : phases) {
    pairs.push_back({pair.ours.GbPerS(), pair.reference.GbPerS()});
  }
  return MakeRow(name, "GB/s", reference, pairs);
}

Row CpuRow(const char* direction, const std::vector<PhasePair>& phases) {
  std::vector<Pair> pairs;
  double least = 1e9, most = 0;
  for (const PhasePair& pair : phases) {
    const double ours = pair.ours.CpuSecondsPerGb();
    pairs.push_back({ours, pair.reference.CpuSecondsPerGb()});
    least = std::min(least, ours);
    most = std::max(most, ours);
  }
  Row row = MakeRow("cpu_cores_per_gb_per_s", "cores", "fio, its own process", pairs);
  row.note = absl::StrFormat(
      "of %s, the worse; the bar is on the value: at most %.2f; range of it %.2f - %.2f; user and "
      "system time of all threads, the driving loop and checksums included",
      direction, kBarCoresPerGbPerS, least, most);
  return row;
}

absl::StatusOr<Phase> FioPhase(const Context& context, const std::vector<std::string>& arguments) {
  const auto jobs = RunFio(context, arguments);
  if (!jobs.ok()) return jobs.status();
  const FioJob& job = jobs->front();
  const FioFlow& flow = job.read.bytes > 0 ? job.read : job.write;
  if (flow.seconds <= 0) return absl::InternalError("fio moved nothing");
  return Phase{static_cast<double>(flow.bytes), flow.seconds, job.cpu_seconds};
}

struct Files {
  std::string read, write;  // fio's
  std::string tiers;        // a directory for ours
};

NvmeOptions TierOptions(const Files& files, const char* name, uint64_t capacity_bytes) {
  NvmeOptions options;
  options.directory = absl::StrCat(files.tiers, "/", name);
  options.capacity_bytes = capacity_bytes;
  return options;
}

// Objects of `object_bytes` that fill a phase, read in order or shuffled anew for each pair.
absl::StatusOr<std::vector<PhasePair>> MeasureReads(const Context& context, const Files& files,
                                                    const char* row, uint64_t object_bytes,
                                                    bool shuffled, std::string& engine) {
  auto driver = TierDriver::Open(TierOptions(files, row, 2 * kPhaseBytes), object_bytes, kDepth);
  if (!driver.ok()) return driver.status();
  const absl::Status written = (*driver)->Write(kPhaseBytes / object_bytes);
  if (!written.ok()) return written;
  engine = (*driver)->Stats().engine;
  std::vector<StoredObject> objects = (*driver)->objects();
  std::mt19937_64 random(20240607);
  const std::vector<std::string> job =
      FioJobArguments(row, files.read, kPhaseBytes, shuffled ? "randread" : "read",
                      absl::StrCat(object_bytes / kMiB, "M"), kDepth);
  return Alternate(
      row,
      [&] {
        if (shuffled) std::shuffle(objects.begin(), objects.end(), random);
        return Measure(kPhaseBytes, [&] { return (*driver)->Read(objects, kDepth); });
      },
      [&] { return FioPhase(context, job); });
}

absl::StatusOr<std::vector<PhasePair>> MeasureWrites(const Context& context, const Files& files) {
  constexpr uint64_t kObjectBytes = 4 * kMiB;
  auto driver = TierDriver::Open(TierOptions(files, "write", kPhaseBytes), kObjectBytes, 0);
  if (!driver.ok()) return driver.status();
  // Full before the first pair: segments are recycled, as fio overwrites its file.
  const absl::Status filled = (*driver)->Write(kPhaseBytes / kObjectBytes);
  if (!filled.ok()) return filled;
  if ((*driver)->Stats().reclaimed_segments == 0) {
    return absl::InternalError("the tier is not full: not the measurement intended");
  }
  std::vector<std::string> job =
      FioJobArguments("write", files.write, kPhaseBytes, "write", "4M", kDepth);
  job.push_back("--end_fsync=1");
  return Alternate(
      "write",
      [&] {
        return Measure(kPhaseBytes, [&] { return (*driver)->Write(kPhaseBytes / kObjectBytes); });
      },
      [&] { return FioPhase(context, job); });
}

absl::StatusOr<FioJob> FioMixed(const Context& context, const Files& files) {
  std::vector<std::string> arguments =
      FioJobArguments("read", files.read, kPhaseBytes, "randread", "1M", 1);
  const std::vector<std::string> timed = {"--time_based",
                                          absl::StrCat("--runtime=", kMixedSeconds)};
  arguments.insert(arguments.end(), timed.begin(), timed.end());
  const std::vector<std::string> writer =
      FioJobArguments("write", files.write, kPhaseBytes, "write", "1M", kDepth);
  arguments.insert(arguments.end(), writer.begin(), writer.end());
  arguments.insert(arguments.end(), timed.begin(), timed.end());
  auto jobs = RunFio(context, arguments);
  if (!jobs.ok()) return jobs.status();
  if (jobs->size() != 2) return absl::InternalError("fio did not run two jobs");
  FioJob mixed = jobs->front();
  mixed.write = jobs->back().write;
  return mixed;
}

absl::StatusOr<Row> MeasureDemand(const Context& context, const Files& files) {
  auto driver = TierDriver::Open(TierOptions(files, "mixed", 2 * kPhaseBytes), kMiB, 1);
  if (!driver.ok()) return driver.status();
  const absl::Status filled = (*driver)->Write(2 * kPhaseBytes / kMiB);
  if (!filled.ok()) return filled;
  std::vector<Pair> pairs;
  std::vector<double> our_writes, fio_writes, our_p50;
  uint64_t fewest = UINT64_MAX, fio_fewest = UINT64_MAX;
  for (int i = 0; i < kPairs; ++i) {
    const NvmeStats before = (*driver)->Stats();
    const double start = NowSeconds();
    auto latencies = (*driver)->ReadUnderWrites(kMixedReads, kMixedSeconds);
    if (!latencies.ok()) return latencies.status();
    our_writes.push_back(
        static_cast<double>((*driver)->Stats().written_bytes - before.written_bytes) /
        (NowSeconds() - start) / 1e9);
    const absl::Status drained = (*driver)->Write(0);  // or they would run beside fio
    if (!drained.ok()) return drained;
    const auto fio = FioMixed(context, files);
    if (!fio.ok()) return fio.status();
    fio_writes.push_back(static_cast<double>(fio->write.bytes) / fio->write.seconds / 1e9);
    fewest = std::min<uint64_t>(fewest, latencies->size());
    fio_fewest = std::min(fio_fewest, fio->read.requests);
    our_p50.push_back(Percentile(*latencies, 50) * 1e3);
    pairs.push_back({Percentile(*latencies, 99) * 1e3, fio->read.p99_clat_seconds * 1e3});
    Progress(
        absl::StrFormat("nvme demand_p99_under_writes %d/%d: %.1f ms beside %.2f GB/s, fio %.1f ms "
                        "beside %.2f GB/s",
                        i + 1, kPairs, pairs.back().ours, our_writes.back(), pairs.back().reference,
                        fio_writes.back()));
  }
  Row row =
      MakeRow("demand_p99_under_writes", "ms", "fio, randread 1M beside write 1M x 16", pairs);
  row.note = absl::StrFormat(
      "at least %d reads a round, fio %d; beside them %.2f GB/s of writes, fio %.2f; our p50 %.1f "
      "ms",
      fewest, fio_fewest, Percentile(our_writes, 50), Percentile(fio_writes, 50),
      Percentile(our_p50, 50));
  return row;
}

absl::StatusOr<std::vector<Row>> MeasureAll(const Context& context, const Files& files) {
  Progress("nvme: laying out fio's files");
  for (const std::string& file : {files.read, files.write}) {
    const absl::Status laid_out = LayOutFile(context, file, kPhaseBytes);
    if (!laid_out.ok()) return laid_out;
  }
  std::string engine;
  const auto reads = MeasureReads(context, files, "read_4MiB", 4 * kMiB, false, engine);
  if (!reads.ok()) return reads.status();
  const auto random = MeasureReads(context, files, "random_read_1MiB", kMiB, true, engine);
  if (!random.ok()) return random.status();
  const auto writes = MeasureWrites(context, files);
  if (!writes.ok()) return writes.status();
  const auto demand = MeasureDemand(context, files);
  if (!demand.ok()) return demand.status();

  Row read = BandwidthRow("read_4MiB", "fio read 4M x 16", *reads);
  read.note =
      absl::StrCat("this and the rows below with ", engine,
                   "; 4 MiB objects, 16 in flight, checksums compared; buffers on huge pages, also "
                   "fio's, which reads at about half the speed without");
  Row random_read = BandwidthRow("random_read_1MiB", "fio randread 1M x 16", *random);
  Row write = BandwidthRow("write", "fio write 4M x 16, end_fsync", *writes);
  write.note = "4 MiB objects until all are durable, into a full tier: segments are recycled";
  const Row read_cpu = CpuRow("reads", *reads), write_cpu = CpuRow("writes", *writes);
  return std::vector<Row>{std::move(read), std::move(random_read), std::move(write), *demand,
                          read_cpu.value > write_cpu.value ? read_cpu : write_cpu};
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunNvme(const Context& context) {
  const std::string directory = context.scratch_dir + "/nvme";
  const Files files{directory + "/fio.read", directory + "/fio.write", directory + "/tiers"};
  std::error_code error;
  std::filesystem::create_directories(files.tiers, error);
  if (error) return absl::InternalError(absl::StrCat(files.tiers, ": ", error.message()));
  auto rows = MeasureAll(context, files);
  std::filesystem::remove_all(directory, error);
  return rows;
}

}  // namespace terrace::bench
