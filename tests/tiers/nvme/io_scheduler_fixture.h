// A scheduler over real files, with a scripted engine in front of each real one.
#pragma once

#include <fcntl.h>

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/tiers/nvme/nvme_fixture.h"
#include "tests/tiers/nvme/scripted_engine.h"
#include "tiers/nvme/io_scheduler.h"

namespace terrace::nvme {

using Direction = Transfer::Direction;
using Kind = IoOp::Kind;

inline constexpr uint64_t kBlock = 4096;
inline constexpr uint64_t kPiece = 32 * kBlock;

inline bool IsRead(const IoOp& op) { return op.kind == Kind::kRead; }
inline bool IsWrite(const IoOp& op) { return op.kind == Kind::kWrite; }
inline bool IsSync(const IoOp& op) { return op.kind == Kind::kSync; }

// What became of a transfer.
struct Outcome {
  std::vector<uint64_t> advanced;
  std::optional<absl::Status> status;
};

class IoSchedulerTest : public testing::TestWithParam<EngineChoice> {
 protected:
  void SetUp() override {
    options_.system = &system_;
    options_.engine = GetParam();
    options_.piece_bytes = kPiece;
    options_.write_pieces = 1;
    file_ = MakeFile("a");
  }
  void TearDown() override {
    script().ReleaseAll();
    io_.reset();
  }

  Script& script() { return system_.script; }

  void Start() {
    auto io = IoScheduler::Start(options_);
    ASSERT_TRUE(io.ok()) << io.status();
    io_ = *std::move(io);
  }

  std::shared_ptr<SegmentFile> MakeFile(const std::string& name) {
    auto file = std::make_shared<SegmentFile>();
    file->path = scratch_.path() + "/" + name;
    file->fd = system_.Open(file->path, O_RDWR | O_CREAT | O_DIRECT);
    EXPECT_GE(file->fd, 0);
    file->state = SegmentFile::State::kReady;
    return file;
  }

  // Bytes of a seed, in memory for O_DIRECT.
  static kernels::AlignedBuffer Bytes(uint64_t count, uint64_t seed) {
    kernels::AlignedBuffer buffer(count);
    std::mt19937_64 random(seed);
    for (uint64_t at = 0; at < buffer.size_bytes(); at += 8) {
      const uint64_t value = random();
      std::memcpy(buffer.data() + at, &value, 8);
    }
    return buffer;
  }

  std::unique_ptr<Transfer> Make(Direction direction, uint64_t offset,
                                 const kernels::AlignedBuffer& payload) {
    auto transfer = std::make_unique<Transfer>();
    transfer->direction = direction;
    transfer->file = file_;
    transfer->file_offset = offset;
    transfer->head = Bytes(kBlock, offset);
    transfer->payload = payload.data();
    transfer->payload_bytes = payload.size_bytes();
    transfer->priority = direction == Direction::kRead ? IoPriority::kDemand  //
                                                       : IoPriority::kBackground;
    return transfer;
  }

  // Submits it; what it already has as `advanced` is called too.
  std::shared_ptr<Outcome> Submit(std::unique_ptr<Transfer> transfer) {
    auto outcome = std::make_shared<Outcome>();
    transfer->advanced = [this, outcome, inner = std::move(transfer->advanced)](uint64_t bytes) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        outcome->advanced.push_back(bytes);
      }
      return inner ? inner(bytes) : absl::OkStatus();
    };
    transfer->finished = [this, outcome](absl::Status status) {
      std::lock_guard<std::mutex> lock(mutex_);
      EXPECT_FALSE(outcome->status.has_value()) << "finished twice";
      outcome->status = std::move(status);
      changed_.notify_all();
    };
    io_->Submit(std::move(transfer));
    return outcome;
  }
  std::shared_ptr<Outcome> Write(uint64_t offset, const kernels::AlignedBuffer& payload) {
    return Submit(Make(Direction::kWrite, offset, payload));
  }
  std::shared_ptr<Outcome> Read(uint64_t offset, const kernels::AlignedBuffer& payload,
                                IoPriority priority = IoPriority::kDemand, uint64_t batch = 0) {
    auto transfer = Make(Direction::kRead, offset, payload);
    transfer->priority = priority;
    transfer->batch = batch;
    return Submit(std::move(transfer));
  }

  absl::Status Await(const std::shared_ptr<Outcome>& outcome) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool finished = changed_.wait_for(lock, std::chrono::seconds(60),
                                            [&] { return outcome->status.has_value(); });
    return finished ? *outcome->status : absl::InternalError("never finished");
  }
  bool Finished(const std::shared_ptr<Outcome>& outcome) {
    std::lock_guard<std::mutex> lock(mutex_);
    return outcome->status.has_value();
  }
  std::vector<uint64_t> Advanced(const std::shared_ptr<Outcome>& outcome) {
    std::lock_guard<std::mutex> lock(mutex_);
    return outcome->advanced;
  }

  // What lies in the file, past the scheduler.
  kernels::AlignedBuffer FileBytes(uint64_t offset, uint64_t bytes) {
    kernels::AlignedBuffer buffer(bytes);
    EXPECT_EQ(System::Real().Read(file_->fd, buffer.data(), bytes, offset),
              static_cast<int64_t>(bytes));
    return buffer;
  }
  void ExpectInFile(uint64_t offset, const kernels::AlignedBuffer& bytes) {
    const kernels::AlignedBuffer found = FileBytes(offset, bytes.size_bytes());
    EXPECT_EQ(std::memcmp(found.data(), bytes.data(), bytes.size_bytes()), 0) << "at " << offset;
  }
  void ExpectRecordInFile(uint64_t offset, const kernels::AlignedBuffer& payload) {
    ExpectInFile(offset, Bytes(kBlock, offset));
    if (payload.size_bytes() > 0) ExpectInFile(offset + kBlock, payload);
  }
  // Puts a record into the file, past the scheduler.
  void Put(uint64_t offset, const kernels::AlignedBuffer& payload) {
    const kernels::AlignedBuffer head = Bytes(kBlock, offset);
    ASSERT_EQ(System::Real().Write(file_->fd, head.data(), kBlock, offset), 4096);
    ASSERT_EQ(
        System::Real().Write(file_->fd, payload.data(), payload.size_bytes(), offset + kBlock),
        static_cast<int64_t>(payload.size_bytes()));
  }

  std::vector<uint64_t> Offsets(Kind kind) {
    std::vector<uint64_t> offsets;
    for (const Script::Seen& one : script().seen()) {
      if (one.kind == kind) offsets.push_back(one.offset);
    }
    return offsets;
  }

  TemporaryDirectory scratch_;
  ScriptedSystem system_;
  IoScheduler::Options options_;
  std::shared_ptr<SegmentFile> file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<IoScheduler> io_;
};

inline std::string EngineName(const testing::TestParamInfo<EngineChoice>& engine) {
  return engine.param == EngineChoice::kIoUring ? "IoUring" : "Threads";
}

}  // namespace terrace::nvme
