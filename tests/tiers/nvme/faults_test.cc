// What the tier does about each thing that may be wrong with a device, with either engine.
#include <gmock/gmock.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "tests/support/faulty_system.h"
#include "tests/tiers/nvme/nvme_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSeed = 20261123;

class FaultsTest : public NvmeTierTest, public testing::WithParamInterface<nvme::EngineChoice> {
 protected:
  FaultsTest() {
    options_.system = &system_;
    options_.engine = GetParam();
    system_.ModelDisk();
    RecordProperty("seed", static_cast<int>(kSeed));
  }

  void TearDown() override { tier_.reset(); }  // before the system that it uses

  // Objects that are durable.
  void Store(size_t count) {
    while (objects_.size() < count) {
      objects_.push_back(MakeObject(objects_.size() + 1, 4, 50'000));
      MustWrite(objects_.back());
    }
  }
  void ExpectAllStored() {
    for (const TestObject& object : objects_) {
      const RecordId id = IdOf(object.meta.key);
      ASSERT_NE(id, kNoRecord) << object.meta.cost_us;
      ExpectStored(id, object);
    }
  }
  // As the daemon does some times a second.
  bool TickUntil(absl::FunctionRef<bool()> done) {
    std::jthread ticker([this](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        loop_.post()([this] { tier_->Tick(); });
      }
    });
    return loop_.RunUntil(done);
  }

  FaultySystem system_{kSeed};
  std::vector<TestObject> objects_;
};

INSTANTIATE_TEST_SUITE_P(Engines, FaultsTest,
                         testing::Values(nvme::EngineChoice::kAuto, nvme::EngineChoice::kThreads),
                         [](const auto& tested) {
                           return tested.param == nvme::EngineChoice::kAuto ? "Auto" : "Threads";
                         });

TEST_P(FaultsTest, AStormTakesTheTierOutOfServiceAndAProbeBringsItBack) {
  Open();
  Store(12);
  system_.SetStorm(true);
  // Which error is one too many is the tier's to say; it is a matter of some.
  for (int i = 0; i < 100 && tier_->in_service(); ++i) {
    const ReadResult read = Read(IdOf(objects_[0].meta.key), objects_[0].meta);
    EXPECT_TRUE(absl::IsUnavailable(read.meta.status())) << read.meta.status();
  }
  ASSERT_FALSE(tier_->in_service());
  EXPECT_THAT(tier_->Stats().health, HasSubstr("out of service"));
  const uint64_t injected = system_.injected(Fault::kReadError);
  EXPECT_TRUE(
      absl::IsUnavailable(Read(IdOf(objects_[1].meta.key), objects_[1].meta).meta.status()));
  EXPECT_EQ(system_.injected(Fault::kReadError), injected);  // the device is not asked
  const absl::Status refused = Write(MakeObject(99, 1, 1000)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("out of service"));

  bool ended = false;
  EXPECT_TRUE(TickUntil([&] {
    if (!std::exchange(ended, true)) system_.ClearFaults();
    return tier_->in_service();
  }));
  EXPECT_EQ(tier_->Stats().health, "ok");
  ExpectAllStored();
  EXPECT_TRUE(dropped_.empty());
  Store(14);
}

TEST_P(FaultsTest, WithoutSpaceTheTierIsReadOnlyForSomeTime) {
  Open();
  Store(4);
  system_.SetRate(Fault::kNoSpace, 1);
  const absl::Status full = Write(MakeObject(99, 4, 50'000)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(tier_->Stats().health, HasSubstr("read-only"));
  EXPECT_TRUE(tier_->in_service());
  ExpectAllStored();
  system_.ClearFaults();
  EXPECT_TRUE(TickUntil([&] { return tier_->Stats().health == "ok"; }));
  Store(8);
  Reopen();
  ExpectAllStored();
}

TEST_P(FaultsTest, WhatCouldNotBeSyncedIsNotAcknowledgedAndItsSegmentIsClosed) {
  Open();
  Store(4);
  system_.SetRate(Fault::kSyncError, 1);
  const absl::Status failed = Write(MakeObject(99, 4, 50'000)).status();
  EXPECT_TRUE(absl::IsUnavailable(failed)) << failed;
  system_.ClearFaults();
  ExpectAllStored();
  const uint64_t segments = tier_->Stats().segments - tier_->Stats().clean_segments;
  Store(6);
  EXPECT_EQ(tier_->Stats().segments - tier_->Stats().clean_segments, segments + 1);
  Reopen();
  ExpectAllStored();
}

TEST_P(FaultsTest, WithoutAnIndexThatCanBeWrittenNothingIsLost) {
  Open();
  system_.SetRate(Fault::kIndexError, 1);
  Store(60);  // 12 MiB: some segments are sealed
  EXPECT_GT(tier_->Stats().segments, 2u);
  ExpectAllStored();
  tier_.reset();  // its rows are not written either
  system_.ClearFaults();
  Open();
  ExpectAllStored();
  Reopen();
  ExpectAllStored();
}

TEST_P(FaultsTest, NobodySeesShortTransfersInterruptionsAndDelays) {
  system_.SetRate(Fault::kShort, 0.5);
  system_.SetRate(Fault::kTransient, 0.3);
  system_.SetRate(Fault::kDelay, 0.1);
  Open();
  Store(30);
  ExpectAllStored();
  Reopen();
  ExpectAllStored();
  for (const Fault fault : {Fault::kShort, Fault::kTransient, Fault::kDelay}) {
    EXPECT_GT(system_.injected(fault), 0u) << FaultName(fault);
  }
}

// The device says that all is well, and lies.
TEST_P(FaultsTest, WritesThatWentWrongAreMissesAndNeverWrongBytes) {
  Open();
  Store(10);
  system_.SetRate(Fault::kTornWrite, 0.1);
  system_.SetRate(Fault::kMisdirectedWrite, 0.1);
  Store(60);
  system_.ClearFaults();
  for (int start = 0; start < 2; ++start) {
    size_t missed = 0;
    for (const TestObject& object : objects_) {
      const RecordId id = IdOf(object.meta.key);
      const ReadResult read = id == kNoRecord ? ReadResult() : Read(id, object.meta);
      if (read.meta.ok()) {
        EXPECT_EQ(
            std::memcmp(read.payload.data(), object.payload.data(), object.meta.payload_bytes), 0);
        continue;
      }
      ++missed;
      EXPECT_TRUE(system_.IsDamaged(object.meta.key)) << object.meta.cost_us;
    }
    EXPECT_GT(missed, 0u);
    EXPECT_LT(missed, objects_.size() / 2);
    Reopen();
  }
}

// A segment that cannot be read when the tier starts is neither believed to be empty nor written.
TEST_P(FaultsTest, WhatCannotBeReadAtAStartIsThereAtTheNext) {
  Open();
  Store(10);
  tier_.reset();
  std::filesystem::remove_all(options_.directory + "/index");  // or nothing would be read
  auto tier = NvmeTier::Open(options_, loop_.post());
  ASSERT_TRUE(tier.ok()) << tier.status();
  tier_ = *std::move(tier);
  system_.SetRate(Fault::kReadError, 1);
  uint64_t found = 0;
  const absl::Status status =
      tier_->Recover([](uint64_t) {}, [&](RecordId, RecordMeta&) { ++found; });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(found, 0u);
  system_.ClearFaults();
  objects_.push_back(MakeObject(99, 4, 50'000));
  MustWrite(objects_.back());
  Reopen();
  ExpectAllStored();
}

// The id of a record that is erased while it is read may be given to another record before the
// read fails: that one stays.
TEST_P(FaultsTest, ADamagedReadDoesNotEraseTheRecordThatGotItsId) {
  Open();
  system_.SetRate(Fault::kTornWrite, 1);
  const TestObject torn = MakeObject(1, 4, 50'000), next = MakeObject(2, 4, 50'000);
  RecordId id = kNoRecord;
  // A torn write may happen to be whole.
  for (uint64_t i = 0; i < 20 && !system_.IsDamaged(torn.meta.key); ++i) id = MustWrite(torn);
  ASSERT_TRUE(system_.IsDamaged(torn.meta.key));
  system_.ClearFaults();

  std::atomic<bool> durable = false;
  system_.OnStep([&](const char* label) {
    if (std::string_view(label) == "store.durable") durable = true;
  });
  std::optional<absl::StatusOr<RecordId>> written;
  tier_->Write({next.meta, next.payload.data(), IoPriority::kBackground,
                [&](absl::StatusOr<RecordId> record) { written = std::move(record); }});
  while (!durable) std::this_thread::yield();  // and on its way to the loop
  kernels::AlignedBuffer payload(torn.meta.payload_bytes);
  std::optional<absl::Status> read;
  ReadRequest request = Request(id, torn.meta, payload.data());
  request.done = [&](const absl::StatusOr<RecordMeta>& meta) { read = meta.status(); };
  tier_->Read(std::move(request));
  Erase(id);
  ASSERT_TRUE(loop_.RunUntil([&] { return written.has_value() && read.has_value(); }));
  system_.OnStep(nullptr);
  EXPECT_TRUE(absl::IsDataLoss(*read)) << *read;
  ASSERT_TRUE(written->ok()) << written->status();
  EXPECT_EQ(**written, id);  // or the test tests nothing
  ExpectStored(**written, next);
}

}  // namespace
}  // namespace terrace
