// The scheduler over real files and both engines, with the device misbehaving as told.
#include "tiers/nvme/io_scheduler.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "gmock/gmock.h"
#include "tests/tiers/nvme/nvme_fixture.h"
#include "tests/tiers/nvme/scripted_engine.h"

namespace terrace::nvme {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Direction = Transfer::Direction;
using Kind = IoOp::Kind;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kPiece = 32 * kBlock;

bool IsRead(const IoOp& op) { return op.kind == Kind::kRead; }
bool IsWrite(const IoOp& op) { return op.kind == Kind::kWrite; }
bool IsSync(const IoOp& op) { return op.kind == Kind::kSync; }

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

TEST_P(IoSchedulerTest, RecordsOfAllLengthsGoThereAndBack) {
  Start();
  std::vector<kernels::AlignedBuffer> payloads;
  std::vector<uint64_t> offsets;
  uint64_t end = 0;
  for (const uint64_t blocks : {0, 1, 31, 32, 33, 34, 64, 100, 321}) {
    payloads.push_back(Bytes(blocks * kBlock, blocks));
    offsets.push_back(end);
    end += (blocks + 1) * kBlock;
  }
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (size_t i = 0; i < payloads.size(); ++i) outcomes.push_back(Write(offsets[i], payloads[i]));
  for (size_t i = 0; i < payloads.size(); ++i) {
    EXPECT_TRUE(Await(outcomes[i]).ok()) << Await(outcomes[i]);
    ExpectRecordInFile(offsets[i], payloads[i]);
    EXPECT_EQ(Advanced(outcomes[i]).back(), payloads[i].size_bytes());
  }
  for (size_t i = 0; i < payloads.size(); ++i) {
    const kernels::AlignedBuffer copy(std::max(payloads[i].size_bytes(), kBlock));
    auto transfer = Make(Direction::kRead, offsets[i], copy);
    transfer->payload_bytes = payloads[i].size_bytes();
    std::memset(transfer->head.data(), 0, kBlock);
    const uint8_t* head = transfer->head.data();
    transfer->advanced = [&, i, head](uint64_t) {
      EXPECT_EQ(std::memcmp(head, Bytes(kBlock, offsets[i]).data(), kBlock), 0);
      return absl::OkStatus();
    };
    const auto outcome = Submit(std::move(transfer));
    EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
    EXPECT_EQ(std::memcmp(copy.data(), payloads[i].data(), payloads[i].size_bytes()), 0);
    EXPECT_EQ(Advanced(outcome).back(), payloads[i].size_bytes() + kBlock);
  }
  for (const Script::Seen& one : script().seen()) EXPECT_LE(one.bytes, kPiece + kPiece / 16);
  EXPECT_GT(io_->read_bytes_per_s() + io_->write_bytes_per_s(), 0);
}

TEST_P(IoSchedulerTest, BandwidthOfBothDirectionsIsMeasured) {
  Start();
  EXPECT_EQ(io_->read_bytes_per_s(), 0);
  EXPECT_EQ(io_->write_bytes_per_s(), 0);
  const kernels::AlignedBuffer payload = Bytes(4 << 20, 1);
  ASSERT_TRUE(Await(Write(0, payload)).ok());
  EXPECT_EQ(io_->read_bytes_per_s(), 0);
  EXPECT_GT(io_->write_bytes_per_s(), 0);
  ASSERT_TRUE(Await(Read(0, payload)).ok());
  EXPECT_GT(io_->read_bytes_per_s(), 0);
}

TEST_P(IoSchedulerTest, TheHeadMayHoldWhatThePayloadSays) {
  Start();
  kernels::AlignedBuffer computed(kBlock);
  std::memset(computed.data(), 0x5a, kBlock);
  for (const uint64_t pieces : {0, 1}) {
    const kernels::AlignedBuffer payload = Bytes(pieces * kPiece, pieces);
    auto transfer = Make(Direction::kWrite, pieces * 100 * kPiece, payload);
    transfer->advanced = [&, head = transfer->head.data()](uint64_t) {
      std::memset(head, 0x5a, kBlock);
      return absl::OkStatus();
    };
    const auto outcome = Submit(std::move(transfer));
    ASSERT_TRUE(Await(outcome).ok()) << Await(outcome);
    EXPECT_THAT(Advanced(outcome), ElementsAre(pieces * kPiece));
    ExpectInFile(pieces * 100 * kPiece, computed);
  }
  EXPECT_EQ(script().seen().size(), 4u) << "each one write and a sync";
}

TEST_P(IoSchedulerTest, TheHeadOfALongWriteIsWrittenLast) {
  Start();
  const kernels::AlignedBuffer payload = Bytes(5 * kPiece, 1);
  auto transfer = Make(Direction::kWrite, 0, payload);
  transfer->advanced = [&, head = transfer->head.data()](uint64_t bytes) {
    // Nothing beyond what was announced before is on its way, nor the head.
    for (const Script::Seen& one : script().seen()) {
      EXPECT_LE(one.offset + one.bytes, kBlock + bytes - kPiece);
      EXPECT_GT(one.offset, 0u);
    }
    if (bytes == payload.size_bytes()) std::memset(head, 0x5a, kBlock);
    return absl::OkStatus();
  };
  const auto outcome = Submit(std::move(transfer));
  ASSERT_TRUE(Await(outcome).ok()) << Await(outcome);
  EXPECT_THAT(Advanced(outcome),
              ElementsAre(kPiece, 2 * kPiece, 3 * kPiece, 4 * kPiece, 5 * kPiece));
  const std::vector<Script::Seen> seen = script().seen();
  ASSERT_EQ(seen.size(), 7u);
  EXPECT_EQ(seen[5].offset, 0u);
  EXPECT_EQ(seen[5].bytes, kBlock);
  EXPECT_EQ(seen[6].kind, Kind::kSync);
  kernels::AlignedBuffer computed(kBlock);
  std::memset(computed.data(), 0x5a, kBlock);
  ExpectInFile(0, computed);
  ExpectInFile(kBlock, payload);
}

TEST_P(IoSchedulerTest, TheHeadWaitsForPayloadThatIsOnItsWay) {
  script().Hold([](const IoOp& op) { return op.offset == kBlock; });
  Start();
  const kernels::AlignedBuffer payload = Bytes(3 * kPiece, 1);
  const auto outcome = Write(0, payload);
  const auto other = Write(1000 * kBlock, payload);  // whose head passes by
  ASSERT_TRUE(Await(other).ok());
  for (const Script::Seen& one : script().seen()) {
    if (one.kind == Kind::kWrite) {
      EXPECT_GT(one.offset, 0u);
    }
  }
  script().ReleaseAll();
  ASSERT_TRUE(Await(outcome).ok());
  ExpectRecordInFile(0, payload);
}

TEST_P(IoSchedulerTest, ReadsAdvanceByTheContiguousPrefix) {
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece - kBlock, 1);
  Put(0, payload);
  script().Hold(IsRead);
  Start();
  const kernels::AlignedBuffer copy(payload.size_bytes());
  const auto outcome = Read(0, copy);
  script().AwaitSeen(4);
  size_t done = 0;
  for (const uint64_t piece : {3, 1, 2}) {
    script().Release([&](const IoOp& op) { return op.offset == piece * kPiece; });
    script().AwaitDone(++done);
  }
  // What is submitted from here on is dealt with after those three.
  const kernels::AlignedBuffer block(kBlock);
  const auto other = Read(100 * kPiece, block);
  script().AwaitSeen(5);
  script().Release([&](const IoOp& op) { return op.offset == 100 * kPiece; });
  EXPECT_TRUE(absl::IsDataLoss(Await(other))) << "the file ends before";
  EXPECT_TRUE(Advanced(outcome).empty());
  script().ReleaseAll();
  ASSERT_TRUE(Await(outcome).ok());
  EXPECT_THAT(Advanced(outcome), ElementsAre(kPiece, 2 * kPiece, 3 * kPiece, 4 * kPiece));
  EXPECT_EQ(std::memcmp(copy.data(), payload.data(), payload.size_bytes()), 0);
}

TEST_P(IoSchedulerTest, TheDeviceHasItsNextPieceBeforeOneIsLookedAt) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece - kBlock, 1);
  Put(0, payload);
  Start();
  const kernels::AlignedBuffer copy(payload.size_bytes());
  auto transfer = Make(Direction::kRead, 0, copy);
  transfer->advanced = [&](uint64_t bytes) {
    const std::vector<Script::Seen> seen = script().seen();
    EXPECT_GE(seen.size(), std::min<uint64_t>(bytes / kPiece + 1, 4));
    EXPECT_TRUE(seen.back().handed_over);
    return absl::OkStatus();
  };
  ASSERT_TRUE(Await(Submit(std::move(transfer))).ok());
}

TEST_P(IoSchedulerTest, ShortTransfersAreContinued) {
  std::mt19937_64 random(1);
  script().SetOutcome([&](const IoOp& op) -> std::optional<int64_t> {
    const uint64_t bytes = Script::Bytes(op);
    // Not block-aligned as a rule, now and then less than a block.
    if (op.kind == Kind::kSync || random() % 4 == 0) return std::nullopt;
    return random() % 8 == 0 ? 1 + random() % (kBlock - 1) : 1 + random() % bytes;
  });
  Start();
  const kernels::AlignedBuffer large = Bytes(5 * kPiece + 7 * kBlock, 1);
  std::vector<kernels::AlignedBuffer> small;
  std::vector<std::shared_ptr<Outcome>> outcomes = {Write(0, large)};
  for (uint64_t i = 0; i < 20; ++i) {
    small.push_back(Bytes(3 * kBlock, i));
    outcomes.push_back(Write(10 * kPiece + i * 4 * kBlock, small.back()));
  }
  for (const auto& outcome : outcomes) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  ExpectRecordInFile(0, large);
  for (uint64_t i = 0; i < 20; ++i) ExpectRecordInFile(10 * kPiece + i * 4 * kBlock, small[i]);
  const kernels::AlignedBuffer copy(large.size_bytes());
  const auto outcome = Read(0, copy);
  ASSERT_TRUE(Await(outcome).ok()) << Await(outcome);
  EXPECT_EQ(std::memcmp(copy.data(), large.data(), large.size_bytes()), 0);
}

TEST_P(IoSchedulerTest, RefusalsForNowAreTriedAgainWithinBounds) {
  Start();
  const kernels::AlignedBuffer payload = Bytes(2 * kPiece, 1), copy(2 * kPiece);
  for (const int error : {EINTR, EAGAIN}) {
    std::atomic<int> storm = 150;  // spread over four operations
    std::map<std::pair<Kind, uint64_t>, int> refused;
    script().SetOutcome([&](const IoOp& op) -> std::optional<int64_t> {
      if (++refused[{op.kind, op.offset}] > 30 || storm-- <= 0) return std::nullopt;
      return -error;
    });
    const auto write = Write(0, payload);
    EXPECT_TRUE(Await(write).ok()) << Await(write);
    const auto read = Read(0, copy);
    EXPECT_TRUE(Await(read).ok()) << Await(read);
    EXPECT_EQ(std::memcmp(copy.data(), payload.data(), payload.size_bytes()), 0);

    for (const Kind kind : {Kind::kRead, Kind::kWrite, Kind::kSync}) {
      std::atomic<int> attempts = 0;
      script().SetOutcome([&, kind](const IoOp& op) -> std::optional<int64_t> {
        if (op.kind != kind) return std::nullopt;
        ++attempts;
        return -error;
      });
      const kernels::AlignedBuffer block = Bytes(kBlock, 1);
      const auto outcome = kind == Kind::kRead ? Read(0, block) : Write(0, block);
      EXPECT_TRUE(absl::IsUnavailable(Await(outcome))) << Await(outcome);
      EXPECT_GT(attempts, 1);
      EXPECT_LT(attempts, 1000);
    }
    script().SetOutcome(nullptr);
  }
}

TEST_P(IoSchedulerTest, ErrorsFailTheTransferTheyHit) {
  Start();
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece, 1), copy(4 * kPiece);
  ASSERT_TRUE(Await(Write(0, payload)).ok());
  ASSERT_TRUE(Await(Write(100 * kPiece, payload)).ok());
  const auto at_third_piece = [](int error) {
    return [error](const IoOp& op) -> std::optional<int64_t> {
      const bool hit = op.offset >= 2 * kPiece && op.offset < 100 * kPiece;
      return hit && op.kind != Kind::kSync ? std::optional<int64_t>(-error) : std::nullopt;
    };
  };
  for (const int error : {EIO, EINVAL, ENOMEM}) {
    script().SetOutcome(at_third_piece(error));
    const auto read = Read(0, copy), write = Write(0, payload);
    EXPECT_TRUE(absl::IsUnavailable(Await(read))) << Await(read);
    EXPECT_THAT(std::string(Await(read).message()), HasSubstr(file_->path));
    EXPECT_TRUE(absl::IsUnavailable(Await(write))) << Await(write);
    const auto other = Read(100 * kPiece, copy);
    EXPECT_TRUE(Await(other).ok()) << Await(other);
  }
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    script().SetOutcome(at_third_piece(error));
    const auto write = Write(0, payload);
    EXPECT_TRUE(absl::IsResourceExhausted(Await(write))) << Await(write);
  }
}

TEST_P(IoSchedulerTest, AFailedWriteLeavesNoHead) {
  Start();
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece, 1);
  script().SetOutcome([](const IoOp& op) -> std::optional<int64_t> {
    return op.kind == Kind::kWrite && op.offset > 2 * kPiece ? std::optional<int64_t>(-EIO)
                                                             : std::nullopt;
  });
  EXPECT_TRUE(absl::IsUnavailable(Await(Write(0, payload))));
  for (const uint64_t offset : Offsets(Kind::kWrite)) EXPECT_NE(offset, 0u);
  EXPECT_EQ(script().Count(Kind::kSync), 0u);
}

TEST_P(IoSchedulerTest, FilesThatEndTooEarlyAreDataLoss) {
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece, 1), copy(4 * kPiece);
  Put(0, payload);
  Start();
  for (const uint64_t end : {3 * kPiece, kPiece + 100, uint64_t{100}, uint64_t{0}}) {
    ASSERT_EQ(system_.Truncate(file_->fd, end), 0);
    const auto outcome = Read(0, copy);
    EXPECT_TRUE(absl::IsDataLoss(Await(outcome))) << end << ": " << Await(outcome);
  }
}

TEST_P(IoSchedulerTest, OfAMergedWriteThoseThatWereWrittenAreWritten) {
  script().Hold(IsWrite);
  options_.write_depth = 1;
  Start();
  const kernels::AlignedBuffer first = Bytes(kBlock, 1);
  const auto blocker = Write(1000 * kBlock, first);
  script().AwaitSeen(1);
  std::vector<kernels::AlignedBuffer> payloads;
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (uint64_t i = 0; i < 4; ++i) {
    payloads.push_back(Bytes(kBlock, i));
    outcomes.push_back(Write(i * 2 * kBlock, payloads.back()));
  }
  // The device takes five of the eight blocks.
  script().SetOutcome([](const IoOp& op) -> std::optional<int64_t> {
    if (op.kind != Kind::kWrite || op.offset >= 1000 * kBlock) return std::nullopt;
    return op.offset == 0 ? 5 * static_cast<int64_t>(kBlock) : -EIO;
  });
  script().ReleaseAll();
  EXPECT_TRUE(Await(blocker).ok());
  EXPECT_TRUE(Await(outcomes[0]).ok());
  EXPECT_TRUE(Await(outcomes[1]).ok());
  EXPECT_TRUE(absl::IsUnavailable(Await(outcomes[2])));
  EXPECT_TRUE(absl::IsUnavailable(Await(outcomes[3])));
  ExpectRecordInFile(0, payloads[0]);
  ExpectRecordInFile(2 * kBlock, payloads[1]);
}

TEST_P(IoSchedulerTest, NeighboursAreWrittenTogether) {
  script().Hold(IsWrite);
  options_.write_depth = 1;
  Start();
  const kernels::AlignedBuffer block = Bytes(kBlock, 7);
  const auto blocker = Write(1000 * kBlock, block);
  script().AwaitSeen(1);
  std::vector<kernels::AlignedBuffer> payloads;
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (uint64_t i = 0; i < 40; ++i) {
    payloads.push_back(Bytes(kBlock, i));
    outcomes.push_back(Write(i * 2 * kBlock, payloads.back()));
  }
  EXPECT_TRUE(Advanced(outcomes[39]).empty());
  script().ReleaseAll();
  for (uint64_t i = 0; i < 40; ++i) {
    EXPECT_TRUE(Await(outcomes[i]).ok()) << Await(outcomes[i]);
    EXPECT_THAT(Advanced(outcomes[i]), ElementsAre(kBlock));
    ExpectRecordInFile(i * 2 * kBlock, payloads[i]);
  }
  EXPECT_THAT(Offsets(Kind::kWrite), ElementsAre(1000 * kBlock, 0, kPiece, 2 * kPiece));
  EXPECT_TRUE(Await(blocker).ok());
}

TEST_P(IoSchedulerTest, AWriteThatIsCalledOffLeavesItsNeighbours) {
  script().Hold(IsWrite);
  options_.write_depth = 1;
  Start();
  const kernels::AlignedBuffer block = Bytes(kBlock, 7), large = Bytes(4 * kPiece, 8);
  const auto blocker = Write(1000 * kBlock, block);
  script().AwaitSeen(1);
  std::vector<std::shared_ptr<Outcome>> outcomes;
  for (uint64_t i = 0; i < 5; ++i) {
    auto transfer = Make(Direction::kWrite, i * 2 * kBlock, block);
    if (i == 0 || i == 2) {
      transfer->advanced = [](uint64_t) { return absl::DataLossError("called off"); };
    }
    outcomes.push_back(Submit(std::move(transfer)));
  }
  auto transfer = Make(Direction::kWrite, 2000 * kBlock, large);
  transfer->advanced = [](uint64_t bytes) {
    return bytes < 3 * kPiece ? absl::OkStatus() : absl::DataLossError("called off");
  };
  const auto long_one = Submit(std::move(transfer));
  script().ReleaseAll();
  for (uint64_t i = 0; i < 5; ++i) {
    if (i == 0 || i == 2) {
      EXPECT_EQ(Await(outcomes[i]), absl::DataLossError("called off"));
    } else {
      EXPECT_TRUE(Await(outcomes[i]).ok()) << i << ": " << Await(outcomes[i]);
      ExpectRecordInFile(i * 2 * kBlock, block);
    }
  }
  EXPECT_EQ(Await(long_one), absl::DataLossError("called off"));
  EXPECT_THAT(Offsets(Kind::kWrite), ElementsAre(1000 * kBlock, 2 * kBlock, 6 * kBlock,
                                                 2001 * kBlock, 2001 * kBlock + kPiece));
  EXPECT_TRUE(Await(blocker).ok());
}

TEST_P(IoSchedulerTest, AReadThatIsCalledOffStops) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer payload = Bytes(8 * kPiece, 1), copy(8 * kPiece);
  Put(0, payload);
  Start();
  auto transfer = Make(Direction::kRead, 0, copy);
  transfer->advanced = [](uint64_t) { return absl::DataLossError("called off"); };
  EXPECT_EQ(Await(Submit(std::move(transfer))), absl::DataLossError("called off"));
  const auto other = Read(0, copy);
  EXPECT_TRUE(Await(other).ok());
  EXPECT_THAT(script().Count(Kind::kRead), 8 + 2) << "of the first only what was on its way";
}

TEST_P(IoSchedulerTest, DemandOvertakesQueuedReadsAndWrites) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer large = Bytes(4 * kPiece - kBlock, 1), block = Bytes(kBlock, 2);
  for (uint64_t i = 0; i < 4; ++i) Put(i * 100 * kPiece, large);
  script().Hold(Script::Anything);
  Start();
  kernels::AlignedBuffer copies[3];
  for (auto& copy : copies) copy = kernels::AlignedBuffer(large.size_bytes());
  std::vector<std::shared_ptr<Outcome>> outcomes = {Write(900 * kPiece, block)};
  script().AwaitSeen(1);
  outcomes.push_back(Write(950 * kPiece, block));
  outcomes.push_back(Read(0, copies[0], IoPriority::kBackground));
  outcomes.push_back(Read(100 * kPiece, copies[1], IoPriority::kLaterLayers));
  outcomes.push_back(Read(200 * kPiece, copies[2], IoPriority::kDemand));
  script().ReleaseAll();
  for (const auto& outcome : outcomes) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  EXPECT_THAT(Offsets(Kind::kRead),
              ElementsAre(200 * kPiece, 201 * kPiece, 202 * kPiece, 203 * kPiece,  //
                          100 * kPiece, 101 * kPiece, 102 * kPiece, 103 * kPiece,  //
                          0, kPiece, 2 * kPiece, 3 * kPiece));
  size_t reads_before_the_write = 0;
  for (const Script::Seen& one : script().seen()) {
    if (one.kind == Kind::kWrite && one.offset == 950 * kPiece) break;
    reads_before_the_write += one.kind == Kind::kRead;
  }
  EXPECT_EQ(reads_before_the_write, 12u);
}

TEST_P(IoSchedulerTest, DemandOvertakesTheRestOfALongRead) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer large = Bytes(4 * kPiece - kBlock, 1);
  Put(0, large);
  Put(100 * kPiece, large);
  script().Hold(IsRead);
  Start();
  const kernels::AlignedBuffer copy(large.size_bytes()), other(large.size_bytes());
  const auto background = Read(0, copy, IoPriority::kBackground);
  script().AwaitSeen(1);
  const auto demand = Read(100 * kPiece, other);
  script().ReleaseAll();
  EXPECT_TRUE(Await(background).ok());
  EXPECT_TRUE(Await(demand).ok());
  EXPECT_THAT(Offsets(Kind::kRead),
              ElementsAre(0, 100 * kPiece, 101 * kPiece, 102 * kPiece, 103 * kPiece,  //
                          kPiece, 2 * kPiece, 3 * kPiece));
}

TEST_P(IoSchedulerTest, RecordsOfABatchAdvanceTogether) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer large = Bytes(3 * kPiece - kBlock, 1);
  for (uint64_t i = 0; i < 4; ++i) Put(i * 100 * kPiece, large);
  script().Hold(IsRead);
  Start();
  kernels::AlignedBuffer copies[4];
  for (auto& copy : copies) copy = kernels::AlignedBuffer(large.size_bytes());
  std::vector<std::shared_ptr<Outcome>> outcomes = {Read(300 * kPiece, copies[3])};
  script().AwaitSeen(1);
  outcomes.push_back(Read(200 * kPiece, copies[2], IoPriority::kDemand, 6));
  outcomes.push_back(Read(0, copies[0], IoPriority::kDemand, 5));
  outcomes.push_back(Read(100 * kPiece, copies[1], IoPriority::kDemand, 5));
  script().ReleaseAll();
  for (const auto& outcome : outcomes) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  EXPECT_THAT(Offsets(Kind::kRead),
              ElementsAre(300 * kPiece, 301 * kPiece, 302 * kPiece,  //
                          0, 100 * kPiece, kPiece, 101 * kPiece, 2 * kPiece, 102 * kPiece,
                          200 * kPiece, 201 * kPiece, 202 * kPiece));
}

TEST_P(IoSchedulerTest, OneWriteAtATimeWhileADemandReadIsAbout) {
  const kernels::AlignedBuffer block = Bytes(kBlock, 1), copy(kBlock);
  Put(0, block);
  script().Hold(IsRead);
  Start();
  const auto read = Read(0, copy);
  script().AwaitSeen(1);
  std::vector<std::shared_ptr<Outcome>> writes;
  for (uint64_t i = 1; i < 12; ++i) writes.push_back(Write(i * 100 * kPiece, block));
  for (const auto& write : writes) EXPECT_TRUE(Await(write).ok());
  EXPECT_FALSE(Finished(read));
  for (const Script::Seen& one : script().seen()) {
    if (one.kind == Kind::kWrite) {
      EXPECT_EQ(one.writes_in_flight, 1u);
    }
  }
  script().ReleaseAll();
  EXPECT_TRUE(Await(read).ok());
}

TEST_P(IoSchedulerTest, WritesHaveTheirDepthWhenNobodyReads) {
  const kernels::AlignedBuffer block = Bytes(kBlock, 1);
  script().Hold(IsWrite);
  Start();
  std::vector<std::shared_ptr<Outcome>> writes;
  for (uint64_t i = 0; i < 12; ++i) writes.push_back(Write(i * 100 * kPiece, block));
  script().AwaitSeen(options_.write_depth);
  script().ReleaseAll();
  for (const auto& write : writes) EXPECT_TRUE(Await(write).ok());
  uint32_t most = 0;
  for (const Script::Seen& one : script().seen()) most = std::max(most, one.writes_in_flight);
  EXPECT_EQ(most, options_.write_depth);
}

TEST_P(IoSchedulerTest, ASyncCoversTheWritesDoneBeforeItAndNoOthers) {
  const kernels::AlignedBuffer block = Bytes(kBlock, 1);
  script().Hold([](const IoOp& op) { return op.kind == Kind::kSync || op.offset >= 300 * kBlock; });
  Start();
  const auto first = Write(0, block);
  script().AwaitSeen(2);  // written, and its sync is held
  // Two are written meanwhile; the last is on its way.
  const auto second = Write(100 * kBlock, block), third = Write(200 * kBlock, block);
  const auto last = Write(300 * kBlock, block);
  script().AwaitSeen(5);
  script().AwaitDone(3);
  EXPECT_FALSE(Finished(first)) << "not before it is durable";
  script().Release(IsSync);
  EXPECT_TRUE(Await(first).ok());
  script().AwaitSeen(6);
  EXPECT_FALSE(Finished(second));
  EXPECT_FALSE(Finished(third));
  script().Release(IsSync);
  EXPECT_TRUE(Await(second).ok());
  EXPECT_TRUE(Await(third).ok());
  EXPECT_EQ(script().Count(Kind::kSync), 2u) << "those two share one";
  EXPECT_FALSE(Finished(last));
  script().ReleaseAll();
  EXPECT_TRUE(Await(last).ok());
  EXPECT_EQ(script().Count(Kind::kSync), 3u);
}

TEST_P(IoSchedulerTest, AFailedSyncFailsItsWritesAndNoOthers) {
  const kernels::AlignedBuffer block = Bytes(kBlock, 1);
  std::atomic<int> syncs = 0;
  script().SetOutcome([&](const IoOp& op) -> std::optional<int64_t> {
    if (op.kind != Kind::kSync || ++syncs > 1) return std::nullopt;
    return -EIO;
  });
  script().Hold(IsSync);
  Start();
  const auto first = Write(0, block);
  script().AwaitSeen(2);
  const auto second = Write(100 * kBlock, block);
  script().AwaitSeen(3);
  script().ReleaseAll();
  EXPECT_TRUE(absl::IsUnavailable(Await(first))) << Await(first);
  EXPECT_THAT(std::string(Await(first).message()), HasSubstr("fdatasync"));
  EXPECT_TRUE(Await(second).ok()) << Await(second);
}

TEST_P(IoSchedulerTest, WritesWaitForTheirFile) {
  Start();
  const kernels::AlignedBuffer block = Bytes(kBlock, 1);
  const auto healthy = file_;
  const auto good = MakeFile("good"), bad = MakeFile("bad");
  good->state = bad->state = SegmentFile::State::kPreparing;
  file_ = good;
  const auto waits = Write(0, block);
  file_ = bad;
  const auto fails = Write(0, block);
  file_ = healthy;
  EXPECT_TRUE(Await(Write(0, block)).ok());
  EXPECT_FALSE(Finished(waits));
  EXPECT_FALSE(Finished(fails));
  io_->FileReady(good, absl::OkStatus());
  io_->FileReady(bad, absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(Await(waits).ok());
  EXPECT_EQ(Await(fails), absl::ResourceExhaustedError("full"));
  file_ = bad;
  EXPECT_EQ(Await(Write(0, block)), absl::ResourceExhaustedError("full"));
}

TEST_P(IoSchedulerTest, StopFinishesWritesAndAbandonsReads) {
  options_.queue_depth = 1;
  const kernels::AlignedBuffer large = Bytes(2 * kPiece, 1), block = Bytes(kBlock, 2);
  Put(0, block);
  script().Hold(Script::Anything);
  Start();
  const kernels::AlignedBuffer copy(kBlock), copies(2 * kPiece);
  const auto in_flight = Read(0, copy);
  script().AwaitSeen(1);
  const auto queued = Read(0, copies);
  const auto write = Write(100 * kBlock, large);
  const auto preparing = MakeFile("preparing");
  preparing->state = SegmentFile::State::kPreparing;
  auto transfer = Make(Direction::kWrite, 0, block);
  transfer->file = preparing;
  const auto unready = Submit(std::move(transfer));
  std::thread stopper([this] { io_->Stop(); });
  EXPECT_TRUE(absl::IsUnavailable(Await(queued))) << Await(queued);
  EXPECT_FALSE(Finished(in_flight));
  EXPECT_FALSE(Finished(write));
  script().ReleaseAll();
  EXPECT_TRUE(Await(in_flight).ok());
  EXPECT_TRUE(Await(write).ok());
  EXPECT_FALSE(Finished(unready));
  io_->FileReady(preparing, absl::OkStatus());
  stopper.join();
  EXPECT_TRUE(Await(unready).ok());
  io_->FileReady(preparing, absl::OkStatus());  // of a file nobody waits for, while stopped
}

TEST_P(IoSchedulerTest, RandomFaultsAndOrdersLoseNothing) {
  const uint64_t seed = testing::UnitTest::GetInstance()->random_seed();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed), fates(seed + 1);
  script().SetOutcome([&](const IoOp& op) -> std::optional<int64_t> {
    switch (fates() % 6) {
      case 0:
        return fates() % 2 == 0 ? -EAGAIN : -EINTR;
      case 1:
        if (op.kind == Kind::kSync) return std::nullopt;
        return 1 + fates() % Script::Bytes(op);
      default:
        return std::nullopt;
    }
  });
  options_.queue_depth = 8;
  Start();
  std::vector<kernels::AlignedBuffer> payloads, copies;
  std::vector<uint64_t> offsets;
  std::vector<std::shared_ptr<Outcome>> writes, reads;
  uint64_t end = 0;
  for (uint64_t i = 0; i < 150; ++i) {
    const uint64_t blocks = random() % 8 == 0 ? random() % 200 : 1 + random() % 6;
    payloads.push_back(Bytes(blocks * kBlock, random()));
    copies.emplace_back(std::max(blocks, uint64_t{1}) * kBlock);
    offsets.push_back(end);
    end += (blocks + 1) * kBlock + random() % 2 * kBlock;
    writes.push_back(Write(offsets.back(), payloads.back()));
    const uint64_t other = random() % writes.size();
    if (Finished(writes[other])) {
      auto transfer = Make(Direction::kRead, offsets[other], copies[other]);
      transfer->payload_bytes = payloads[other].size_bytes();
      transfer->priority = static_cast<IoPriority>(random() % 5);
      reads.push_back(Submit(std::move(transfer)));
    }
  }
  for (const auto& outcome : writes) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  for (const auto& outcome : reads) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  for (size_t i = 0; i < payloads.size(); ++i) {
    auto transfer = Make(Direction::kRead, offsets[i], copies[i]);
    transfer->payload_bytes = payloads[i].size_bytes();
    transfer->priority = static_cast<IoPriority>(random() % 5);
    reads.push_back(Submit(std::move(transfer)));
  }
  for (const auto& outcome : reads) EXPECT_TRUE(Await(outcome).ok()) << Await(outcome);
  for (size_t i = 0; i < payloads.size(); ++i) {
    EXPECT_EQ(std::memcmp(copies[i].data(), payloads[i].data(), payloads[i].size_bytes()), 0);
    ExpectRecordInFile(offsets[i], payloads[i]);
  }
}

TEST_P(IoSchedulerTest, AnEngineThatIsRefusedIsAnError) {
  class Refusing : public System {
    absl::StatusOr<std::unique_ptr<IoEngine>> MakeEngine(EngineChoice, uint32_t) override {
      return absl::FailedPreconditionError("refused");
    }
  };
  Refusing system;
  options_.system = &system;
  EXPECT_EQ(IoScheduler::Start(options_).status(), absl::FailedPreconditionError("refused"));
}

TEST_P(IoSchedulerTest, SaysWhichEngineItHas) {
  Start();
  EXPECT_THAT(io_->engine(),
              HasSubstr(GetParam() == EngineChoice::kIoUring ? "io_uring" : "preadv2"));
}

INSTANTIATE_TEST_SUITE_P(Engines, IoSchedulerTest,
                         testing::Values(EngineChoice::kIoUring, EngineChoice::kThreads),
                         [](const auto& engine) {
                           return engine.param == EngineChoice::kIoUring ? "IoUring" : "Threads";
                         });

}  // namespace
}  // namespace terrace::nvme
