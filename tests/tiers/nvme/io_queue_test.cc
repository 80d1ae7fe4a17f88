// The order in which pieces go to the device, without one.
#include "tiers/nvme/io_queue.h"

#include <limits.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace::nvme {
namespace {

using testing::ElementsAre;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kPiece = 64 * kBlock;

class IoQueueTest : public testing::Test {
 protected:
  using Direction = Transfer::Direction;

  IoQueueTest() { Limits(16, 4); }

  void Limits(uint32_t queue_depth, uint32_t write_depth, uint32_t write_pieces = 1) {
    IoScheduler::Options options;
    options.queue_depth = queue_depth;
    options.write_depth = write_depth;
    options.piece_bytes = kPiece;
    options.write_pieces = write_pieces;
    queue_.emplace(options);
  }

  Job& Add(Direction direction, IoPriority priority, uint64_t offset, uint64_t payload_bytes,
           uint64_t batch = 0, std::shared_ptr<SegmentFile> file = nullptr) {
    auto transfer = std::make_unique<Transfer>();
    transfer->direction = direction;
    transfer->file = file != nullptr ? file : file_;
    transfer->file_offset = offset;
    transfer->head = kernels::AlignedBuffer(kBlock);
    transfer->payload_bytes = payload_bytes;
    transfer->priority = priority;
    transfer->batch = batch;
    jobs_.push_back(std::make_unique<Job>(std::move(transfer), jobs_.size()));
    queue_->Add(*jobs_.back());
    return *jobs_.back();
  }
  Job& Read(IoPriority priority, uint64_t payload_bytes, uint64_t batch = 0) {
    return Add(Direction::kRead, priority, 0, payload_bytes, batch);
  }
  Job& Write(uint64_t offset, uint64_t payload_bytes) {
    return Add(Direction::kWrite, IoPriority::kBackground, offset, payload_bytes);
  }

  // What the scheduler asks for: reads first.
  std::unique_ptr<Request> Next() {
    std::unique_ptr<Request> request = queue_->NextRead(now_);
    return request != nullptr ? std::move(request) : queue_->NextWrite(now_);
  }
  // Issues and completes everything, one after the other: the jobs' arrivals, or -1 - arrival for
  // the head alone.
  std::vector<int> Drain() {
    std::vector<int> order;
    while (std::unique_ptr<Request> request = Next()) {
      for (const Request::Part& part : request->parts) {
        const int arrival = static_cast<int>(part.job->arrival);
        order.push_back(part.end == kBlock ? -1 - arrival : arrival);
      }
      queue_->Completed(*request);
    }
    return order;
  }

  std::shared_ptr<SegmentFile> file_ = std::make_shared<SegmentFile>();
  std::vector<std::unique_ptr<Job>> jobs_;
  std::optional<IoQueue> queue_;
  IoQueue::Clock::time_point now_{std::chrono::hours(1)};
};

TEST_F(IoQueueTest, ClassesThenBatchesThenArrival) {
  Limits(1, 1);
  Write(0, kBlock);
  Read(IoPriority::kBackground, kBlock);
  Read(IoPriority::kQueued, kBlock);
  Read(IoPriority::kLaterLayers, kBlock);
  Read(IoPriority::kNextLayer, kBlock, 9);
  Read(IoPriority::kNextLayer, kBlock, 8);
  Read(IoPriority::kNextLayer, kBlock, 8);
  Read(IoPriority::kDemand, kBlock);
  EXPECT_THAT(Drain(), ElementsAre(7, 5, 6, 4, 3, 2, 1, 0));
}

TEST_F(IoQueueTest, RecordsOfABatchAdvanceByShare) {
  Limits(1, 1);
  Read(IoPriority::kDemand, 2 * kPiece - kBlock, 1);
  Read(IoPriority::kDemand, 4 * kPiece - kBlock, 1);
  Read(IoPriority::kDemand, 2 * kPiece - kBlock, 2);
  EXPECT_THAT(Drain(), ElementsAre(0, 1, 1, 0, 1, 1, 2, 2));
}

TEST_F(IoQueueTest, AHeadIsNoRequestOfItsOwn) {
  Limits(1, 1);
  Job& exact = Read(IoPriority::kDemand, kPiece);
  std::unique_ptr<Request> request = Next();
  EXPECT_EQ(request->bytes, kPiece + kBlock);
  EXPECT_EQ(exact.issued, exact.total);
  queue_->Completed(*request);

  Read(IoPriority::kDemand, 2 * kPiece);
  EXPECT_EQ((request = Next())->bytes, kPiece);
  queue_->Completed(*request);
  EXPECT_EQ((request = Next())->bytes, kPiece + kBlock);
  queue_->Completed(*request);

  Read(IoPriority::kDemand, kPiece + 8 * kBlock);  // more than a sixteenth too much
  EXPECT_EQ((request = Next())->bytes, kPiece);
  queue_->Completed(*request);
  EXPECT_EQ((request = Next())->bytes, 9 * kBlock);
}

TEST_F(IoQueueTest, TheHeadOfASplitWriteWaitsForItsPayload) {
  Write(0, 2 * kPiece);
  Write(100 * kPiece, kBlock);
  std::unique_ptr<Request> first = Next(), second = Next(), other = Next();
  EXPECT_EQ(first->parts[0].begin, kBlock);
  EXPECT_EQ(second->parts[0].end, 2 * kPiece + kBlock);
  EXPECT_EQ(other->parts[0].job, jobs_[1].get());
  EXPECT_EQ(Next(), nullptr);
  queue_->Completed(*second);
  EXPECT_EQ(Next(), nullptr) << "the first piece of the payload is still on its way";
  queue_->Completed(*first);
  std::unique_ptr<Request> head = Next();
  ASSERT_NE(head, nullptr);
  EXPECT_EQ(head->parts[0].begin, 0u);
  EXPECT_EQ(head->parts[0].end, kBlock);
  EXPECT_EQ(Next(), nullptr);
}

TEST_F(IoQueueTest, ALongHeadWithoutPayloadIsWrittenInOrder) {
  auto transfer = std::make_unique<Transfer>();
  transfer->direction = Direction::kWrite;
  transfer->file = file_;
  transfer->head = kernels::AlignedBuffer(2 * kPiece);
  Job job(std::move(transfer), 0);
  queue_->Add(job);
  const std::unique_ptr<Request> first = Next(), second = Next();
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(first->parts[0].begin, 0u);
  EXPECT_EQ(second->parts[0].begin, kPiece);
  EXPECT_EQ(Next(), nullptr);
}

TEST_F(IoQueueTest, WritesHaveTheirDepthWhenNobodyReads) {
  for (uint64_t i = 0; i < 9; ++i) Write(i * 100 * kPiece, kPiece);
  std::vector<std::unique_ptr<Request>> requests;
  while (std::unique_ptr<Request> request = Next()) requests.push_back(std::move(request));
  EXPECT_EQ(requests.size(), 4u);
  EXPECT_EQ(queue_->writes_in_flight(), 4u);
}

TEST_F(IoQueueTest, WritesAreHeldToOneWhileAnUrgentReadIsAboutAndAMomentLonger) {
  for (const IoPriority priority : {IoPriority::kDemand, IoPriority::kNextLayer}) {
    Limits(16, 4);
    Job& read = Read(priority, kBlock);
    const std::unique_ptr<Request> reading = Next();
    for (uint64_t i = 0; i < 9; ++i) Write(i * 100 * kPiece, kPiece);
    const std::unique_ptr<Request> writing = Next();
    ASSERT_NE(writing, nullptr) << "one is let through";
    EXPECT_EQ(Next(), nullptr);
    queue_->Completed(*reading);
    EXPECT_EQ(Next(), nullptr);
    queue_->Remove(read, now_);
    EXPECT_EQ(Next(), nullptr);
    now_ += IoQueue::kQuiet - std::chrono::nanoseconds(1);
    EXPECT_EQ(Next(), nullptr);
    now_ += std::chrono::nanoseconds(1);
    EXPECT_NE(Next(), nullptr);
    EXPECT_EQ(queue_->writes_in_flight(), 2u);
  }
}

TEST_F(IoQueueTest, OtherReadsHoldNoWrites) {
  Read(IoPriority::kLaterLayers, kBlock);
  const std::unique_ptr<Request> reading = Next();
  for (uint64_t i = 0; i < 9; ++i) Write(i * 100 * kPiece, kPiece);
  while (Next() != nullptr) {
  }
  EXPECT_EQ(queue_->writes_in_flight(), 4u);
}

TEST_F(IoQueueTest, BackgroundReadsAreHeldToOneWhileAnUrgentReadIsAbout) {
  Job& urgent = Read(IoPriority::kDemand, kBlock);
  Read(IoPriority::kBackground, 9 * kPiece);
  const std::unique_ptr<Request> first = Next(), second = Next();
  EXPECT_EQ(second->parts[0].job, jobs_[1].get());
  EXPECT_EQ(Next(), nullptr);
  queue_->Completed(*first);
  queue_->Remove(urgent, now_);
  now_ += IoQueue::kQuiet;
  EXPECT_NE(Next(), nullptr);
}

TEST_F(IoQueueTest, AWaitingWriteGetsItsTurnAmongReadsWithoutEnd) {
  Limits(1, 1);
  Read(IoPriority::kDemand, 100 * kPiece - kBlock);
  Write(0, kBlock);
  Write(100 * kPiece, kBlock);
  const std::vector<int> order = Drain();
  ASSERT_EQ(order.size(), 102u);
  EXPECT_EQ(order[IoQueue::kReadsPerWrite], 1);
  EXPECT_EQ(order[2 * IoQueue::kReadsPerWrite + 1], 2);
}

TEST_F(IoQueueTest, TheFirstReadAfterManyGoesBeforeAWriteThatJustArrived) {
  Limits(1, 1);
  Read(IoPriority::kDemand, 100 * kPiece - kBlock);
  for (int i = 0; i < 50; ++i) queue_->Completed(*Next());
  Write(0, kBlock);
  EXPECT_EQ(Next()->kind, IoOp::Kind::kRead);
}

TEST_F(IoQueueTest, NoMoreThanTheDepthIsInFlight) {
  Limits(3, 2);
  Read(IoPriority::kLaterLayers, 2 * kPiece - kBlock);
  for (uint64_t i = 0; i < 4; ++i) Write(i * 100 * kPiece, kPiece);
  std::vector<std::unique_ptr<Request>> requests;
  while (std::unique_ptr<Request> request = Next()) requests.push_back(std::move(request));
  EXPECT_EQ(requests.size(), 3u);
  EXPECT_EQ(queue_->writes_in_flight(), 1u);
}

TEST_F(IoQueueTest, NeighboursAreMergedUpToAPiece) {
  for (uint64_t i = 0; i < 40; ++i) Write(i * 2 * kBlock, kBlock);
  const std::unique_ptr<Request> first = Next(), second = Next();
  EXPECT_EQ(first->bytes, kPiece);
  EXPECT_EQ(first->parts.size(), 32u);
  EXPECT_EQ(second->bytes, 8 * 2 * kBlock);
  EXPECT_EQ(Next(), nullptr);
  second->Aim();
  EXPECT_EQ(second->offset, kPiece);
  EXPECT_EQ(second->buffer_count, 16);
}

TEST_F(IoQueueTest, GapsFilesAndSplitWritesAreNotMergedOver) {
  Limits(16, 16);
  Write(0, kBlock);                        // ends at 2
  Write(3 * kBlock, kBlock);               // a gap before it
  Write(5 * kBlock, 2 * kPiece);           // split
  Write(6 * kBlock + 2 * kPiece, kBlock);  // behind the split one
  Add(Direction::kWrite, IoPriority::kBackground, 2 * kBlock, kBlock, 0,
      std::make_shared<SegmentFile>());  // of another file
  std::vector<std::unique_ptr<Request>> requests;
  while (std::unique_ptr<Request> request = Next()) {
    EXPECT_EQ(request->parts.size(), 1u);
    requests.push_back(std::move(request));
  }
  EXPECT_EQ(requests.size(), 6u);
}

TEST_F(IoQueueTest, AWriteTakesSeveralPiecesWhileNobodyReads) {
  Limits(16, 4, 4);
  Job& whole = Write(0, 4 * kPiece);  // a head more than four pieces: not split
  std::unique_ptr<Request> request = Next();
  EXPECT_EQ(request->bytes, whole.total);
  queue_->Completed(*request);

  for (uint64_t i = 0; i < 8; ++i) Write((8 + i) * kPiece, kPiece - kBlock);
  request = Next();
  EXPECT_EQ(request->bytes, 4 * kPiece);
  EXPECT_EQ(request->parts.size(), 4u);
  queue_->Completed(*request);
  Read(IoPriority::kDemand, kBlock);
  const std::unique_ptr<Request> read = queue_->NextRead(now_);
  request = queue_->NextWrite(now_);
  EXPECT_EQ(request->bytes, kPiece);
}

TEST_F(IoQueueTest, AWriteBegunInLargePiecesGoesOnInSmallOnesOnceSomebodyReads) {
  Limits(16, 4, 4);
  Job& write = Write(0, 6 * kPiece);
  std::vector<uint64_t> bytes;
  const auto take = [&] {
    const std::unique_ptr<Request> request = queue_->NextWrite(now_);
    if (request == nullptr) return false;
    bytes.push_back(request->bytes);
    queue_->Completed(*request);
    return true;
  };
  EXPECT_TRUE(take());
  Read(IoPriority::kDemand, kBlock);
  const std::unique_ptr<Request> read = queue_->NextRead(now_);
  while (take()) continue;
  EXPECT_THAT(bytes, ElementsAre(4 * kPiece, kPiece, kPiece, kBlock));  // the head last
  EXPECT_EQ(write.issued, write.total);
}

TEST_F(IoQueueTest, AMergedRequestHasNoMoreBuffersThanTheKernelTakes) {
  IoScheduler::Options options;
  options.piece_bytes = 64 << 20;
  queue_.emplace(options);
  for (uint64_t i = 0; i < 2000; ++i) Write(i * 2 * kBlock, kBlock);
  uint64_t bytes = 0;
  while (std::unique_ptr<Request> request = Next()) {
    request->Aim();
    EXPECT_LE(request->buffer_count, IOV_MAX);
    bytes += request->bytes;
    queue_->Completed(*request);
  }
  EXPECT_EQ(bytes, 2000 * 2 * kBlock);
}

TEST_F(IoQueueTest, WhatIsPutBackIsIssuedAgainUnlessItFailed) {
  for (uint64_t i = 0; i < 4; ++i) Write(i * 2 * kBlock, kBlock);
  const std::unique_ptr<Request> request = Next();
  ASSERT_EQ(request->parts.size(), 4u);
  jobs_[1]->status = absl::UnavailableError("unwanted");
  queue_->PutBack(*request, 1);
  EXPECT_EQ(request->bytes, 2 * kBlock);
  EXPECT_EQ(jobs_[1]->in_flight, 0u);
  const std::unique_ptr<Request> rest = Next();
  ASSERT_NE(rest, nullptr);
  ASSERT_EQ(rest->parts.size(), 2u);
  EXPECT_EQ(rest->parts[0].job, jobs_[2].get());
  EXPECT_EQ(Next(), nullptr);
  queue_->PutBack(*rest, 0);
  EXPECT_EQ(queue_->writes_in_flight(), 1u);
}

TEST_F(IoQueueTest, WithdrawnJobsAreNotIssued) {
  Job& read = Read(IoPriority::kDemand, 4 * kPiece);
  Job& write = Write(0, 4 * kPiece);
  const std::unique_ptr<Request> first = queue_->NextRead(now_), second = queue_->NextWrite(now_);
  for (Job* job : {&read, &write}) {
    job->status = absl::UnavailableError("failed");
    queue_->Withdraw(*job);
  }
  EXPECT_EQ(Next(), nullptr);
  queue_->Completed(*first);
  queue_->Completed(*second);
  EXPECT_EQ(Next(), nullptr);
}

TEST_F(IoQueueTest, AimSkipsWhatWasMoved) {
  kernels::AlignedBuffer payload(3 * kBlock);
  Job& first = Write(0, kBlock);
  Job& second = Write(2 * kBlock, 3 * kBlock);
  first.transfer->payload = payload.data();
  second.transfer->payload = payload.data();
  const std::unique_ptr<Request> request = Next();
  ASSERT_EQ(request->bytes, 6 * kBlock);
  request->moved = 4 * kBlock;  // all of the first, and of the second its head and a block
  request->Aim();
  EXPECT_EQ(request->offset, 4 * kBlock);
  ASSERT_EQ(request->buffer_count, 1);
  EXPECT_EQ(request->buffers[0].iov_base, payload.data() + kBlock);
  EXPECT_EQ(request->buffers[0].iov_len, 2 * kBlock);
}

TEST_F(IoQueueTest, AReadAheadHasOnePieceInFlight) {
  Read(IoPriority::kQueued, 4 * kPiece, 1);
  Read(IoPriority::kQueued, 4 * kPiece, 2);
  const std::unique_ptr<Request> first = Next();
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(Next(), nullptr) << "though nobody else reads";
  Read(IoPriority::kDemand, 2 * kPiece - kBlock);
  EXPECT_EQ(Next()->parts[0].job, jobs_[2].get());
  EXPECT_EQ(Next()->parts[0].job, jobs_[2].get());
  EXPECT_EQ(Next(), nullptr);
  queue_->Completed(*first);
  EXPECT_EQ(Next()->parts[0].job, jobs_[0].get());
}

TEST_F(IoQueueTest, ARaisedReadGoesOnInItsNewClass) {
  Limits(16, 1);
  Job& ahead = Read(IoPriority::kQueued, 3 * kPiece - kBlock);
  const std::unique_ptr<Request> patient = Next();
  EXPECT_EQ(Next(), nullptr);
  queue_->Reprioritize(ahead, IoPriority::kDemand, 7);
  const std::unique_ptr<Request> urgent = Next(), last = Next();
  ASSERT_NE(urgent, nullptr);
  ASSERT_NE(last, nullptr);
  EXPECT_EQ(ahead.issued, ahead.total);
  // The books are in order: what was issued as patient ends as that, and writes are held back.
  Write(0, 2 * kPiece);
  EXPECT_EQ(queue_->NextWrite(now_)->bytes, kPiece);
  queue_->Completed(*patient);
  queue_->Completed(*urgent);
  queue_->Completed(*last);
  queue_->Remove(ahead, now_);
  Read(IoPriority::kQueued, 2 * kPiece);
  EXPECT_NE(queue_->NextRead(now_), nullptr);
  EXPECT_EQ(queue_->NextRead(now_), nullptr);
}

}  // namespace
}  // namespace terrace::nvme
