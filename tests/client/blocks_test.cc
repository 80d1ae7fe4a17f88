// Blocks against a real daemon: keys of engines, batches, copies from and to an engine's memory.
#include <gmock/gmock.h>

#include <algorithm>
#include <thread>

#include "client/terrace.h"
#include "tests/client/kv_fixture.h"
#include "tests/support/daemon_process.h"

namespace terrace {
namespace {

using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kPartBytes[] = {5000, 64, 12000};

// An engine's memory: `blocks` blocks of each part, part by part, every byte a function of its
// place.
class EngineMemory {
 public:
  EngineMemory(size_t blocks, uint8_t seed) : blocks_(blocks) {
    for (size_t part = 0; part < std::size(kPartBytes); ++part) {
      auto& bytes = parts_.emplace_back(blocks * kPartBytes[part]);
      for (size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<uint8_t>(seed == 0 ? 0 : seed + i * 31 + (i >> 8) * 7 + part);
      }
    }
  }

  // Parts in two pieces each, so that lengths of pieces matter.
  std::vector<BlockPiece> Pieces(uint32_t first_part = 1, uint32_t last_part = 3) {
    std::vector<BlockPiece> pieces;
    for (uint32_t block = 0; block < blocks_; ++block) {
      for (uint32_t part = first_part; part <= last_part; ++part) {
        const uint64_t bytes = kPartBytes[part - 1];
        const auto at = reinterpret_cast<uint64_t>(parts_[part - 1].data()) + block * bytes;
        pieces.push_back({block, part, at, bytes / 3});
        pieces.push_back({block, part, at + bytes / 3, bytes - bytes / 3});
      }
    }
    return pieces;
  }
  friend bool operator==(const EngineMemory& a, const EngineMemory& b) {
    return a.parts_ == b.parts_;
  }

 private:
  size_t blocks_;
  std::vector<std::vector<uint8_t>> parts_;
};

class BlocksTest : public testing::Test {
 protected:
  explicit BlocksTest(DaemonSettings settings = {}) : daemon_(std::move(settings)) {}
  void SetUp() override { Connect(); }
  void Connect() {
    client_ = daemon_.Connect();
    ASSERT_NE(client_, nullptr);
    model_ = Register("engine of the test");
  }
  Model Register(std::string space) {
    const auto model =
        client_->RegisterBlocks({std::move(space), {std::begin(kPartBytes), std::end(kPartBytes)}});
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *model : Model{};
  }
  std::vector<ObjectKey> Keys(size_t count, std::string_view salt = {}) {
    std::vector<ObjectKey> keys;
    for (size_t i = 0; i < count; ++i) {
      keys.push_back(client_->BlockKey(model_, salt, "block " + std::to_string(i)));
    }
    return keys;
  }
  CommitReport Store(absl::Span<const ObjectKey> keys, EngineMemory& memory, uint32_t threads = 1,
                     const BlockStoreOptions& options = {kPromptCostUs, {}}) {
    CommitReport report;
    auto store = client_->BeginBlocks(model_, keys, options);
    EXPECT_TRUE(store.ok()) << store.status();
    if (!store.ok()) return report;
    EXPECT_TRUE(store->Gather(memory.Pieces(), threads).ok());
    EXPECT_TRUE(store->Commit(&report).ok());
    return report;
  }
  std::vector<TierId> Tiers(absl::Span<const ObjectKey> keys) {
    std::vector<TierId> tiers;
    const auto found = client_->FindBlocks(model_, keys);
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok()) return tiers;
    for (const ExtentInfo& info : *found) tiers.push_back(info.tier);
    return tiers;
  }
  std::vector<bool> AdvisedAgainst(absl::Span<const ObjectKey> keys) {
    std::vector<bool> advised;
    const auto found = client_->FindBlocks(model_, keys);
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok()) return advised;
    for (const ExtentInfo& info : *found) advised.push_back((info.flags & kFlagRecompute) != 0);
    return advised;
  }

  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Model model_;
};

TEST_F(BlocksTest, WhatWasGatheredIsScatteredBack) {
  constexpr size_t kBlocks = 700;  // more than a call takes, more than one thread copies
  const auto keys = Keys(kBlocks);
  EXPECT_THAT(Tiers(keys), Each(TierId::kNone));
  EngineMemory memory(kBlocks, 3);
  EXPECT_EQ(Store(keys, memory, 2).stored, kBlocks);
  EXPECT_THAT(Tiers(keys), Each(TierId::kHost));
  for (const uint32_t threads : {1u, 3u}) {
    auto lease = client_->AcquireBlocks(model_, keys);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(lease->usable_chunks(), kBlocks);
    ASSERT_TRUE(lease->WaitParts(3, 60000).ok());
    EngineMemory loaded(kBlocks, 0);
    ASSERT_TRUE(lease->Scatter(loaded.Pieces(), threads).ok());
    EXPECT_TRUE(loaded == memory) << threads;
  }
}

TEST_F(BlocksTest, EveryKeyIsAnsweredAndALeaseEndsAtTheFirstGap) {
  EngineMemory memory(5, 1);
  auto keys = Keys(5);
  EXPECT_EQ(Store(keys, memory).stored, 5u);
  ASSERT_TRUE(client_->Remove(keys[1]).ok());
  EXPECT_THAT(Tiers(keys), ElementsAre(TierId::kHost, TierId::kNone, TierId::kHost, TierId::kHost,
                                       TierId::kHost));
  auto lease = client_->AcquireBlocks(model_, keys);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->usable_chunks(), 1u);
  EXPECT_TRUE(absl::IsNotFound(
      client_->AcquireBlocks(model_, absl::MakeConstSpan(keys).subspan(1)).status()));
  EXPECT_TRUE(absl::IsNotFound(client_->AcquireBlocks(model_, {}).status()));
  // Storing all of them again writes the one that is missing.
  EXPECT_EQ(Store(keys, memory).stored, 1u);
}

TEST_F(BlocksTest, SpacesSaltsAndSizesShareNothing) {
  EngineMemory memory(2, 1);
  Store(Keys(2), memory);
  EXPECT_THAT(Tiers(Keys(2, "a user's salt")), Each(TierId::kNone));
  EXPECT_THAT(Tiers(Keys(2)), Each(TierId::kHost));
  model_ = Register("another engine");
  EXPECT_THAT(Tiers(Keys(2)), Each(TierId::kNone));
  const auto other_sizes = client_->RegisterBlocks({"engine of the test", {5000, 64, 12001}});
  ASSERT_TRUE(other_sizes.ok()) << other_sizes.status();
  model_ = *other_sizes;
  EXPECT_THAT(Tiers(Keys(2)), Each(TierId::kNone));
}

TEST_F(BlocksTest, TwoThatStoreTheSameBothSucceed) {
  const auto keys = Keys(40);
  EngineMemory memory(40, 9);
  auto first = client_->BeginBlocks(model_, keys);
  auto second = client_->BeginBlocks(model_, keys);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->needed_chunks(), 40u);
  EXPECT_EQ(second->needed_chunks(), 0u);
  CommitReport report;
  ASSERT_TRUE(second->Gather(memory.Pieces()).ok());  // skipped
  ASSERT_TRUE(second->Commit(&report).ok());
  EXPECT_EQ(report.already, 40u);
  ASSERT_TRUE(first->Gather(memory.Pieces()).ok());
  ASSERT_TRUE(first->Commit(&report).ok());
  EXPECT_EQ(report.stored, 40u);
}

// Places of blocks that follow each other, from the first of a prompt on.
std::vector<BlockPlace> Chain(absl::Span<const ObjectKey> keys) {
  std::vector<BlockPlace> places(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    places[i] = {i == 0 ? ObjectKey{} : keys[i - 1], static_cast<uint32_t>(i)};
  }
  return places;
}

TEST_F(BlocksTest, PlacesAreOneAKey) {
  const auto keys = Keys(3);
  EngineMemory memory(3, 9);
  auto places = Chain(keys);
  const auto message = [&] {
    return std::string(client_->BeginBlocks(model_, keys, {0, places}).status().message());
  };
  places[1].parent = keys[1];
  EXPECT_THAT(message(), HasSubstr("places[1].parent: the block itself"));
  places.pop_back();
  EXPECT_THAT(message(), HasSubstr("places: 2; expected none, or one for each of 3 keys"));
  EXPECT_THAT(Tiers(keys), Each(TierId::kNone));
  EXPECT_EQ(Store(keys, memory, 1, {kPromptCostUs, Chain(keys)}).stored, 3u);
  EXPECT_EQ(client_->Show(keys[0])->parent, ObjectKey{});
  EXPECT_EQ(client_->Show(keys[2])->parent, keys[1]);
}

TEST_F(BlocksTest, BadPiecesAreNamed) {
  const auto keys = Keys(2);
  EngineMemory memory(2, 9);
  auto store = client_->BeginBlocks(model_, keys);
  ASSERT_TRUE(store.ok());
  auto pieces = memory.Pieces();
  const auto gather = [&](size_t index, BlockPiece piece) {
    auto wrong = pieces;
    wrong[index] = piece;
    return std::string(store->Gather(wrong).message());
  };
  EXPECT_THAT(gather(0, {0, 1, 0, 10}), HasSubstr("pieces[0].address"));
  EXPECT_THAT(gather(0, {7, 1, pieces[0].address, 10}), HasSubstr("chunk: 7"));
  EXPECT_THAT(gather(0, {0, 4, pieces[0].address, 10}), HasSubstr("part: 4"));
  EXPECT_THAT(gather(0, {0, 0, pieces[0].address, 10}), HasSubstr("part: 0"));
  EXPECT_THAT(gather(1, {0, 1, pieces[1].address, 1}), HasSubstr("which has 5000"));
  EXPECT_THAT(gather(1, {0, 1, pieces[1].address, ~uint64_t{0}}), HasSubstr("which has 5000"));
  // A part that was not written is not published.
  ASSERT_TRUE(store->Gather(memory.Pieces(1, 2)).ok());
  EXPECT_THAT(std::string(store->Commit().message()), HasSubstr("part 3"));
  EXPECT_THAT(Tiers(keys), Each(TierId::kNone));
}

TEST_F(BlocksTest, BadLayoutsAreNamed) {
  const auto message = [&](std::vector<uint64_t> parts) {
    return std::string(client_->RegisterBlocks({"x", std::move(parts)}).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("part_bytes: 0 parts; expected 1 .. 439"));
  EXPECT_THAT(message(std::vector<uint64_t>(440, 1)), HasSubstr("part_bytes: 440 parts"));
  EXPECT_THAT(message({1, 0}), HasSubstr("part_bytes[1]: 0"));
  EXPECT_THAT(message({uint64_t{1} << 32}), HasSubstr("part_bytes[0]: 4294967296"));
  EXPECT_THAT(message({0xffffffffu, 0xffffffffu}), HasSubstr("payload"));
}

class SmallHostTest : public BlocksTest {
 protected:
  SmallHostTest() : BlocksTest({16 << 20, 256 << 20, "crossing", ""}) {}
};

TEST_F(SmallHostTest, BlocksComeBackFromTheDeviceAfterARestart) {
  constexpr size_t kBlocks = 300;
  EngineMemory memory(kBlocks, 7);
  const auto keys = Keys(kBlocks);
  EXPECT_EQ(Store(keys, memory, 1, {kPromptCostUs, Chain(keys)}).stored, kBlocks);
  ASSERT_TRUE(client_->Flush(60000).ok());
  daemon_.Restart();
  Connect();
  EXPECT_THAT(Tiers(keys), Each(TierId::kNvme));
  auto lease = client_->AcquireBlocks(model_, keys);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EngineMemory loaded(kBlocks, 0);
  for (uint32_t part = 1; part <= 3; ++part) {  // as layers come
    ASSERT_TRUE(lease->WaitParts(part, 60000).ok());
    ASSERT_TRUE(lease->Scatter(loaded.Pieces(part, part)).ok());
  }
  EXPECT_TRUE(loaded == memory);
  EXPECT_EQ(client_->Show(keys[kBlocks - 1])->parent, keys[kBlocks - 2]);
  // They are a prompt in memory, too: of it the end leaves first, whatever is used last.
  ASSERT_TRUE(lease->Release().ok());
  for (const ObjectKey& key : keys) EXPECT_TRUE(client_->AcquireBlocks(model_, {key}).ok());
  EngineMemory others(50, 1);
  const auto all_there = [&] {
    const auto tiers = Tiers(keys);
    return std::find(tiers.begin(), tiers.end(), TierId::kNvme) == tiers.end();
  };
  for (int batch = 0; batch < 100 && all_there(); ++batch) {
    Store(Keys(50, std::to_string(batch)), others);
  }
  const auto tiers = Tiers(keys);
  EXPECT_THAT(tiers, Contains(TierId::kNvme));
  EXPECT_TRUE(std::is_partitioned(tiers.begin(), tiers.end(),
                                  [](TierId tier) { return tier == TierId::kHost; }));
}

class AllWrittenTest : public BlocksTest {
 protected:
  AllWrittenTest() : BlocksTest({64 << 20, 256 << 20, "crossing", "admission = \"always\"\n"}) {}
};

TEST_F(AllWrittenTest, WhatIsSoonerMadeAgainThanReadIsSaid) {
  const auto keys = Keys(7);  // the last is not stored
  const auto dear = absl::MakeConstSpan(keys).first(3),
             quick = absl::MakeConstSpan(keys).subspan(3, 3);
  EngineMemory memory(3, 5);
  EXPECT_EQ(Store(dear, memory).stored, 3u);
  EXPECT_EQ(Store(quick, memory, 1, {3, {}}).stored, 3u);  // a microsecond each
  EXPECT_THAT(AdvisedAgainst(keys), Each(false));          // in memory
  ASSERT_TRUE(client_->Flush(60000).ok());
  daemon_.Restart();
  Connect();
  EXPECT_THAT(AdvisedAgainst(keys), ElementsAre(false, false, false, true, true, true, false));
  EXPECT_THAT(Tiers(quick), Each(TierId::kNvme));
  // What rests on it would have to be made too.
  EXPECT_THAT(AdvisedAgainst({quick[0], dear[0], dear[1]}), Each(false));
  // Only the leading run can be loaded.
  EXPECT_THAT(AdvisedAgainst({quick[0], keys[6], quick[1]}), ElementsAre(true, false, false));
  EXPECT_THAT(AdvisedAgainst({keys[6], quick[0]}), Each(false));
  // Though nobody reads: the speed that it rests on may be of long ago.
  EXPECT_TRUE(Eventually([&] { return Counter(*client_, "nvme_read_bytes") > 0; }));
}

class FullHostTest : public BlocksTest {
 protected:
  FullHostTest() : BlocksTest({16 << 20, 0, "crossing", ""}) {}

  // Of prompts that fill memory several times over, whose ends are used again now and then as by an
  // engine that has their beginnings itself: how many are left with a gap.
  int PromptsWithAGap(bool placed) {
    constexpr size_t kPrompts = 80, kBlocks = 25;
    const auto all = Keys(kPrompts * kBlocks);
    const auto prompt = [&](size_t i) {
      return absl::MakeConstSpan(all).subspan(i * kBlocks, kBlocks);
    };
    EngineMemory memory(kBlocks, 5);
    int left = 0, with_a_gap = 0;
    for (size_t i = 0; i < kPrompts; ++i) {
      const auto places = Chain(prompt(i));
      const auto report =
          Store(prompt(i), memory, 1, {kPromptCostUs, placed ? places : std::vector<BlockPlace>{}});
      EXPECT_EQ(report.stored, kBlocks) << report.why;
      if (i < 3) continue;
      client_->AcquireBlocks(model_, prompt(i - 3).subspan(kBlocks / 2)).IgnoreError();
    }
    for (size_t i = 0; i < kPrompts; ++i) {
      const auto tiers = Tiers(prompt(i));
      const auto there = std::count(tiers.begin(), tiers.end(), TierId::kHost);
      const auto first_gap = std::find(tiers.begin(), tiers.end(), TierId::kNone);
      left += there > 0;
      with_a_gap += first_gap - tiers.begin() != there;
    }
    EXPECT_GT(left, 0);
    EXPECT_LT(left, static_cast<int>(kPrompts));
    return with_a_gap;
  }
};

TEST_F(FullHostTest, OfAPromptWhatStaysIsItsBeginning) { EXPECT_EQ(PromptsWithAGap(true), 0); }

TEST_F(FullHostTest, OfBlocksWithoutPlacesAnythingMayStay) { EXPECT_GT(PromptsWithAGap(false), 0); }

TEST_F(FullHostTest, ABlockWithoutRoomTakesNoOtherAlong) {
  const auto keys = Keys(2000);  // 34 MiB; waits while memory grows, not when it is full
  auto store = client_->BeginBlocks(model_, keys);
  ASSERT_TRUE(store.ok()) << store.status();
  const uint32_t needed = store->needed_chunks();
  EXPECT_GT(needed, 0u);
  EXPECT_LT(needed, 2000u);
  EngineMemory memory(2000, 3);
  ASSERT_TRUE(store->Gather(memory.Pieces()).ok());
  CommitReport report;
  ASSERT_TRUE(store->Commit(&report).ok());
  EXPECT_EQ(report.stored, needed);
  EXPECT_EQ(report.failed, 2000 - needed);
  EXPECT_TRUE(absl::IsResourceExhausted(report.why)) << report.why;
}

}  // namespace
}  // namespace terrace
