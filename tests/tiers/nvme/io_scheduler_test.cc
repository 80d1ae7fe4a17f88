// What is written and read, and in which order, while the device behaves.
#include <cstring>

#include "gmock/gmock.h"
#include "tests/tiers/nvme/io_scheduler_fixture.h"

namespace terrace::nvme {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

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
  for (uint64_t i = 0; i < 2 * options_.write_depth; ++i) {
    writes.push_back(Write(i * 100 * kPiece, block));
  }
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

TEST_P(IoSchedulerTest, ACancelledReadEndsWithWhatIsInFlight) {
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece - kBlock, 1);
  Put(0, payload);
  script().Hold(IsRead);
  Start();
  const kernels::AlignedBuffer copy(payload.size_bytes());
  auto transfer = Make(Direction::kRead, 0, copy);
  transfer->priority = IoPriority::kQueued;
  transfer->ticket = 5;
  const auto outcome = Submit(std::move(transfer));
  script().AwaitSeen(1);
  io_->Cancel(5);
  io_->Cancel(6);  // nobody's
  const kernels::AlignedBuffer block(kBlock);
  const auto other = Read(2 * kPiece, block);  // what is said before it is heard before it
  script().AwaitSeen(2);
  EXPECT_FALSE(Finished(outcome)) << "its memory is still being written";
  script().ReleaseAll();
  EXPECT_TRUE(absl::IsCancelled(Await(outcome))) << Await(outcome);
  EXPECT_TRUE(Await(other).ok());
  EXPECT_EQ(script().Count(Kind::kRead), 2u);
  io_->Cancel(5);
}

TEST_P(IoSchedulerTest, AReadThatIsWhollyOnItsWayIsNotCancelled) {
  const kernels::AlignedBuffer payload = Bytes(kPiece - kBlock, 1);
  Put(0, payload);
  script().Hold(IsRead);
  Start();
  const kernels::AlignedBuffer copy(payload.size_bytes());
  auto transfer = Make(Direction::kRead, 0, copy);
  transfer->ticket = 5;
  const auto outcome = Submit(std::move(transfer));
  script().AwaitSeen(1);
  io_->Cancel(5);
  script().ReleaseAll();
  EXPECT_TRUE(Await(outcome).ok());
}

TEST_P(IoSchedulerTest, ARaisedReadGetsTheRestOfTheDevice) {
  const kernels::AlignedBuffer payload = Bytes(4 * kPiece - kBlock, 1);
  Put(0, payload);
  script().Hold(IsRead);
  Start();
  const kernels::AlignedBuffer copy(payload.size_bytes());
  auto transfer = Make(Direction::kRead, 0, copy);
  transfer->priority = IoPriority::kQueued;
  transfer->ticket = 5;
  const auto outcome = Submit(std::move(transfer));
  script().AwaitSeen(1);
  io_->Reprioritize(5, IoPriority::kDemand, 1);
  script().AwaitSeen(4);  // none of them released
  script().ReleaseAll();
  EXPECT_TRUE(Await(outcome).ok());
  EXPECT_EQ(std::memcmp(copy.data(), payload.data(), payload.size_bytes()), 0);
}

TEST_P(IoSchedulerTest, SaysWhichEngineItHas) {
  Start();
  EXPECT_THAT(io_->engine(),
              HasSubstr(GetParam() == EngineChoice::kIoUring ? "io_uring" : "preadv2"));
}

INSTANTIATE_TEST_SUITE_P(Engines, IoSchedulerTest,
                         testing::Values(EngineChoice::kIoUring, EngineChoice::kThreads),
                         EngineName);

}  // namespace
}  // namespace terrace::nvme
