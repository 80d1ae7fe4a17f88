// The checks of the conversions on messages that no client of ours would send, and the framing.
#include "transport/wire_codec.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "transport/hint_codec.h"
#include "transport/message_buffer.h"
#include "transport/operator_codec.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

capnp::Data::Reader Bytes(const std::string& bytes) {
  return capnp::Data::Reader(reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size());
}

TEST(WireCodecTest, KeysMustBeWholeAndFew) {
  const std::string bytes(32 * 5, 'k');
  absl::Span<const ObjectKey> keys;
  ASSERT_TRUE(ReadKeys(Bytes(bytes), "keys", {5}, keys).ok());
  EXPECT_EQ(keys.size(), 5u);
  EXPECT_EQ(static_cast<const void*>(keys.data()), bytes.data());  // no copy
  absl::Status status = ReadKeys(Bytes(bytes), "keys", {4}, keys);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  status = ReadKeys(Bytes(bytes.substr(1)), "grains", {5}, keys);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("grains"));
}

TEST(WireCodecTest, OneKeyIsThirtyTwoBytes) {
  ObjectKey key;
  for (size_t size : {0, 1, 31, 33, 64}) {
    EXPECT_EQ(ReadKey(Bytes(std::string(size, 'x')), "key", key).code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  EXPECT_TRUE(ReadOptionalKey(Bytes(""), "parent", key).ok());
  EXPECT_TRUE(key.IsZero());
  EXPECT_FALSE(ReadOptionalKey(Bytes("x"), "parent", key).ok());
}

TEST(WireCodecTest, CommitListsAreBounded) {
  capnp::MallocMessageBuilder message;
  auto params = message.initRoot<wire::Session::CommitParams>();
  auto item = params.initItems(1)[0];
  item.initPartCrcs(kMaxParts + 1);
  std::vector<CommitItem> items;
  absl::Status status = ReadCommit(params.asReader(), {}, items);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("part_crcs"));
  item.initPartCrcs(kMaxParts);
  EXPECT_TRUE(ReadCommit(params.asReader(), {}, items).ok());
  item.initGrainFilters(kMaxChunkTokens / kGrainTokens + 1);
  status = ReadCommit(params.asReader(), {}, items);
  EXPECT_THAT(std::string(status.message()), HasSubstr("grain_filters"));
}

TEST(WireCodecTest, ReserveNamesTheBadField) {
  capnp::MallocMessageBuilder message;
  auto params = message.initRoot<wire::Session::ReserveParams>();
  auto item = params.initItems(1)[0];
  std::vector<ReserveItem> items;
  EXPECT_THAT(std::string(ReadReserve(params.asReader(), {}, items).message()),
              HasSubstr("items.key"));
  item.initKey(32);
  item.initParent(7);
  EXPECT_THAT(std::string(ReadReserve(params.asReader(), {}, items).message()),
              HasSubstr("items.parent"));
}

TEST(WireCodecTest, AGeometryMustBeTheOneOfItsLayout) {
  KvGeometry geometry;
  geometry.model_id = "m";
  geometry.layers = 2;
  geometry.kv_heads = 3;
  geometry.head_dim = 64;
  geometry.v_head_dim = 32;
  geometry.rope_theta = 1e6;
  geometry.rope_scaling = "yarn";
  geometry.tp_size = 2;
  geometry.lora = "l";
  geometry.engine_layout = "e";
  ObjectLayout layout;
  std::optional<KvGeometry> read;
  {
    capnp::MallocMessageBuilder message;
    auto params = message.initRoot<wire::Session::RegisterLayoutParams>();
    WriteLayout(geometry.Layout(), &geometry, params);
    ASSERT_TRUE(ReadLayout(params.asReader(), layout, read).ok());
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(read->ModelFingerprint(), geometry.ModelFingerprint());  // covers every field
  }
  capnp::MallocMessageBuilder message;
  auto params = message.initRoot<wire::Session::RegisterLayoutParams>();
  WriteLayout(geometry.Layout(), &geometry, params);
  params.getGeometry().setKvHeads(6);
  EXPECT_THAT(std::string(ReadLayout(params.asReader(), layout, read).message()),
              HasSubstr("geometry: the layout is not what"));
  params.getGeometry().setKvHeads(0);
  EXPECT_THAT(std::string(ReadLayout(params.asReader(), layout, read).message()),
              HasSubstr("geometry.kv_heads: 0; expected 1"));
}

TEST(WireCodecTest, RepliesOfAStrangeDaemonAreErrors) {
  std::vector<ExtentInfo> extents;
  EXPECT_FALSE(ReadExtents(Bytes(std::string(15, '\0')), 1, extents).ok());
  EXPECT_FALSE(ReadExtents(Bytes(std::string(32, '\0')), 1, extents).ok());  // more than asked
  std::string record(16, '\0');
  record[14] = 4;  // no such tier
  EXPECT_FALSE(ReadExtents(Bytes(record), 1, extents).ok());
  EXPECT_TRUE(extents.empty());

  capnp::MallocMessageBuilder message;
  Welcome welcome;
  auto out = message.initRoot<wire::Welcome>();
  EXPECT_FALSE(ReadWelcome(out.asReader(), welcome).ok());  // no salt
  AcquireReply reply;
  capnp::MallocMessageBuilder other;
  EXPECT_FALSE(ReadAcquire(other.initRoot<wire::AcquireReply>().asReader(), 1, reply).ok());
}

TEST(WireCodecTest, HintsAreViewsOnTheirMessage) {
  capnp::MallocMessageBuilder message;
  auto params = message.initRoot<wire::Session::HintParams>();
  const std::vector<ObjectKey> keys(3);
  const HintItem hint{HintKind::kSession, 1, 2, 3, 4, 0.5f, 5, keys};
  WriteHints({&hint, 1}, params);
  EXPECT_LE(message.sizeInWords(), HintWords({&hint, 1}));
  std::vector<HintItem> hints;
  ASSERT_TRUE(ReadHints(params.asReader(), {3}, hints).ok());
  EXPECT_EQ(hints[0].keys, hint.keys);
  EXPECT_EQ(ReadHints(params.asReader(), {2}, hints).code(), absl::StatusCode::kResourceExhausted);
  params.getHints()[0].initKeys(33);
  const absl::Status status = ReadHints(params.asReader(), {3}, hints);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hints.keys: 33 bytes"));
}

TEST(WireCodecTest, HintResultsBelongToTheirHints) {
  capnp::MallocMessageBuilder message;
  auto results = message.initRoot<wire::Session::HintResults>().initResults(1);
  const std::vector<ObjectKey> keys(3);
  HintItem hint;
  hint.keys = keys;
  std::vector<HintResult> read;
  results[0].setAccepted(3);
  EXPECT_TRUE(ReadHintResults(results.asReader(), {&hint, 1}, read).ok());
  results[0].setAccepted(4);  // more than were given
  EXPECT_EQ(ReadHintResults(results.asReader(), {&hint, 1}, read).code(),
            absl::StatusCode::kInternal);
}

TEST(WireCodecTest, CurvesAreRatiosAndFewPoints) {
  for (const float bad : {-0.1f, 1.1f, std::nanf("")}) {
    capnp::MallocMessageBuilder message;
    auto out = message.initRoot<wire::MissRatioCurveReply>();
    out.initPoints(1)[0].setByBytes(bad);
    MissRatioCurveReply reply;
    EXPECT_FALSE(ReadCurve(out.asReader(), reply).ok()) << bad;
  }
  for (const double bad : {-1.0, std::nan(""), HUGE_VAL}) {
    capnp::MallocMessageBuilder message;
    auto out = message.initRoot<wire::MissRatioCurveReply>();
    MissRatioCurveReply reply;
    EXPECT_TRUE(ReadCurve(out.asReader(), reply).ok());
    out.setHitSavesUs(bad);
    EXPECT_FALSE(ReadCurve(out.asReader(), reply).ok()) << bad;
  }
  for (const uint32_t points : {4096u, 4097u}) {
    capnp::MallocMessageBuilder message;
    auto out = message.initRoot<wire::MissRatioCurveReply>();
    out.initPoints(points);
    MissRatioCurveReply reply;
    EXPECT_EQ(ReadCurve(out.asReader(), reply).ok(), points == 4096u);
  }
  capnp::MallocMessageBuilder message;
  auto out = message.initRoot<wire::MissRatioCurveReply>();
  out.initCapacities(17);
  MissRatioCurveReply reply;
  EXPECT_FALSE(ReadCurve(out.asReader(), reply).ok());
}

TEST(WireCodecTest, AnUnknownStatusCodeIsUnknown) {
  capnp::MallocMessageBuilder message;
  auto error = message.initRoot<wire::Error>();
  error.setCode(999);
  error.setMessage("from the future");
  EXPECT_EQ(ReadStatus(error.asReader()), absl::UnknownError("from the future"));
}

// Feeds `stream` in pieces of `piece` bytes and counts what comes out.
int CountMessages(const kj::Array<capnp::word>& stream, size_t piece, int copies) {
  MessageBuffer buffer(1 << 20);
  int count = 0;
  for (int copy = 0; copy < copies; ++copy) {
    auto bytes = stream.asBytes();
    for (size_t at = 0; at < bytes.size();) {
      auto space = buffer.Space();
      const size_t n = std::min({piece, bytes.size() - at, space.size()});
      std::memcpy(space.begin(), bytes.begin() + at, n);
      buffer.Added(n);
      at += n;
      for (;;) {
        KJ_IF_MAYBE (message, buffer.Pop(capnp::ReaderOptions())) {
          EXPECT_EQ((*message)->getRoot<wire::Error>().getCode(), 7);
          ++count;
        } else {
          break;
        }
      }
    }
  }
  EXPECT_EQ(buffer.received(), buffer.popped());
  return count;
}

TEST(MessageBufferTest, CutsAtAnyPieceSize) {
  capnp::MallocMessageBuilder message(4, capnp::AllocationStrategy::FIXED_SIZE);
  auto error = message.initRoot<wire::Error>();
  error.setCode(7);
  error.setMessage(std::string(50000, 'm').c_str());  // several segments, larger than the buffer
  auto flat = capnp::messageToFlatArray(message);
  ASSERT_GT(message.getSegmentsForOutput().size(), 1u);
  for (size_t piece : {1, 3, 8, 1000, 4096, 1 << 20}) {
    EXPECT_EQ(CountMessages(flat, piece, 5), 5) << piece;
  }
}

TEST(MessageBufferTest, RefusesBadFraming) {
  for (const auto& [segments, words] :
       {std::pair<uint32_t, uint32_t>{0xffffffff, 1}, {512, 1}, {0, 0x10000000}, {1, 0xffffffff}}) {
    MessageBuffer buffer(1 << 20);
    auto space = buffer.Space();
    const uint32_t header[4] = {segments, words, words, 0};
    std::memcpy(space.begin(), header, sizeof header);
    buffer.Added(sizeof header);
    EXPECT_THROW((void)buffer.Pop(capnp::ReaderOptions()), kj::Exception) << segments;
  }
}

}  // namespace
}  // namespace terrace
