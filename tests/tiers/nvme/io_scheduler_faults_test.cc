// The scheduler while the device misbehaves as told, transfers are called off, or it stops.
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "tests/tiers/nvme/io_scheduler_fixture.h"

namespace terrace::nvme {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

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

INSTANTIATE_TEST_SUITE_P(Engines, IoSchedulerTest,
                         testing::Values(EngineChoice::kIoUring, EngineChoice::kThreads),
                         EngineName);

}  // namespace
}  // namespace terrace::nvme
