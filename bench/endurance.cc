// endurance: what goes to the device for what is stored, replaying a real trace of chat requests
// against a tier that holds 10,000 of its blocks.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/json_fields.h"
#include "kernels/buffer.h"
#include "kernels/checksum.h"
#include "tests/support/test_loop.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace::bench {
namespace {

constexpr char kTrace[] = "mooncake_conversation.jsonl";
constexpr uint64_t kBlockPayloadBytes = 256 << 10;
constexpr uint64_t kBlocks = 10'000;
constexpr uint64_t kSegmentBytes = 64 << 20;
// Of a segment, less its header and footer, in blocks with a header each.
constexpr uint64_t kBlocksPerSegment = kSegmentBytes / (kBlockPayloadBytes + 4096) - 1;
constexpr uint64_t kCapacityBytes =
    (kBlocks + kBlocksPerSegment - 1) / kBlocksPerSegment * kSegmentBytes;
constexpr uint64_t kMaxPendingBlocks = 256;
constexpr double kBar = 1.10;
constexpr std::chrono::seconds kTimeout{300};

// The block ids of all requests, in order.
absl::StatusOr<std::vector<uint32_t>> LoadTrace() {
  const char* set = std::getenv("TERRACE_TRACES");
  const std::string directory =
      set != nullptr ? set : absl::StrCat(TERRACE_SOURCE_DIR, "/../shared/data/kv_traces");
  const std::string path = absl::StrCat(directory, "/", kTrace);
  std::ifstream file(path);
  if (!file) {
    return absl::NotFoundError(absl::StrCat(
        path, " cannot be read; set TERRACE_TRACES to the directory that holds ", kTrace));
  }
  std::vector<uint32_t> ids;
  uint64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const nlohmann::json request = ParseJson(line);
    const nlohmann::json* list = Member(request, "hash_ids");
    if (list == nullptr || !list->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": no array hash_ids"));
    }
    for (const nlohmann::json& id : *list) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
        return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": hash id ", id.dump()));
      }
      ids.push_back(id.get<uint32_t>());
    }
  }
  return ids;
}

// What this process has sent to block devices.
uint64_t ProcessWrittenBytes() {
  std::ifstream file("/proc/self/io");
  std::string name;
  for (uint64_t value = 0; file >> name >> value;) {
    if (name == "write_bytes:") return value;
  }
  return 0;
}

class Replay {
 public:
  absl::Status Open(const std::string& directory, ReclaimPolicy policy);
  absl::Status Run(const std::vector<uint32_t>& ids);
  NvmeStats Stats() const { return tier_->Stats(); }
  uint64_t hits() const { return hits_; }

 private:
  // Of a block that was seen.
  struct Block {
    RecordId record = kNoRecord;
    bool writing = false;
  };
  void Access(uint32_t id);
  void Write(uint32_t id, Block& block, bool seen);

  RecordMeta common_;
  kernels::AlignedBuffer payload_{kBlockPayloadBytes};
  absl::flat_hash_map<uint32_t, Block> blocks_;
  absl::flat_hash_map<RecordId, uint32_t> block_of_;
  uint64_t pending_ = 0, hits_ = 0;
  absl::Status failure_;
  TestLoop loop_;
  std::unique_ptr<NvmeTier> tier_;
};

absl::Status Replay::Open(const std::string& directory, ReclaimPolicy policy) {
  std::mt19937_64 random(20240607);
  for (uint64_t at = 0; at < kBlockPayloadBytes; at += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(payload_.data() + at, &value, sizeof value);
  }
  common_.fingerprint.fill(7);
  common_.token_count = 512;
  common_.payload_bytes = kBlockPayloadBytes;
  common_.part_ends = {0, kBlockPayloadBytes};  // no identity part
  common_.part_crcs = {0, kernels::Crc32c(payload_.data(), kBlockPayloadBytes)};
  NvmeOptions options;
  options.directory = directory;
  options.capacity_bytes = kCapacityBytes;
  options.segment_bytes = kSegmentBytes;
  options.reclaim = policy;
  auto tier = NvmeTier::Open(options, loop_.post());
  if (!tier.ok()) return tier.status();
  tier_ = *std::move(tier);
  tier_->OnDropped([this](RecordId record, const ObjectKey&) {
    const auto found = block_of_.find(record);
    if (found == block_of_.end()) return;
    blocks_[found->second].record = kNoRecord;
    block_of_.erase(found);
  });
  return tier_->Recover([](uint64_t) {}, [](RecordId, const RecordMeta&) {});
}

void Replay::Write(uint32_t id, Block& block, bool seen) {
  WriteRequest request;
  request.meta = common_;
  std::mt19937_64 random(id);
  for (size_t at = 0; at < request.meta.key.bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(request.meta.key.bytes.data() + at, &value, sizeof value);
  }
  // As the daemon has it: what is wanted again is hot.
  request.meta.lifetime = seen ? Lifetime::kHot : Lifetime::kCold;
  request.payload = payload_.data();
  request.done = [this, id](const absl::StatusOr<RecordId>& record) {
    --pending_;
    failure_.Update(record.status());
    Block& written = blocks_[id];
    written.writing = false;
    if (!record.ok()) return;
    written.record = *record;
    block_of_[*record] = id;
  };
  block.writing = true;
  ++pending_;
  tier_->Write(std::move(request));
}

void Replay::Access(uint32_t id) {
  const auto [found, is_new] = blocks_.try_emplace(id);
  Block& block = found->second;
  if (block.record == kNoRecord && !block.writing) {
    Write(id, block, !is_new);
    return;
  }
  ++hits_;
  if (block.record != kNoRecord) tier_->Touch(block.record);
}

absl::Status Replay::Run(const std::vector<uint32_t>& ids) {
  size_t next = 0;
  const bool in_time = loop_.RunUntil(
      [&] {
        while (failure_.ok() && next < ids.size() && pending_ < kMaxPendingBlocks) {
          Access(ids[next++]);
        }
        return !failure_.ok() || (next == ids.size() && pending_ == 0);
      },
      kTimeout);
  if (!in_time) return absl::DeadlineExceededError("the NVMe tier did not answer");
  return failure_;
}

absl::StatusOr<Row> MeasurePolicy(const Context& context, const char* name, ReclaimPolicy policy,
                                  const std::vector<uint32_t>& ids) {
  const std::string directory = context.scratch_dir + "/endurance";
  const uint64_t process_before = ProcessWrittenBytes();
  Replay replay;
  absl::Status status = replay.Open(directory, policy);
  if (!status.ok()) return status;
  const double start = NowSeconds();
  status = replay.Run(ids);
  if (!status.ok()) return status;
  const NvmeStats stats = replay.Stats();
  const auto written = static_cast<double>(stats.written_bytes);
  if (stats.written_bytes == 0) return absl::InternalError("nothing was written");
  Row row = MakeRow(name, "ratio", "payload written",
                    {{static_cast<double>(stats.device_written_bytes) / written, 1.0}});
  row.note = absl::StrFormat(
      "at most %.2f; %d accesses, hit rate %.2f %%, %.1f GB of payload written in %.0f s, %.2f %% "
      "of "
      "it once more; %d records fit in the end; the kernel counts %.3f with the index",
      kBar, ids.size(), 100 * static_cast<double>(replay.hits()) / static_cast<double>(ids.size()),
      written / 1e9, NowSeconds() - start,
      100 * static_cast<double>(stats.reinserted_bytes) / written, stats.records,
      static_cast<double>(ProcessWrittenBytes() - process_before) / written);
  Progress(absl::StrCat("endurance ", name, ": ", row.note));
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunEndurance(const Context& context) {
  const auto ids = LoadTrace();
  if (!ids.ok()) return ids.status();
  std::vector<Row> rows;
  for (const auto& [name, policy] :
       {std::pair("write_amplification_fifo", ReclaimPolicy::kFifo),
        std::pair("write_amplification_default", NvmeOptions().reclaim)}) {
    auto row = MeasurePolicy(context, name, policy, *ids);
    std::error_code ignored;
    std::filesystem::remove_all(context.scratch_dir + "/endurance", ignored);
    if (!row.ok()) return row.status();
    rows.push_back(*std::move(row));
  }
  return rows;
}

}  // namespace terrace::bench
