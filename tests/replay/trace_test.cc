#include "replay/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace terrace::replay {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kData = TERRACE_TRACES;

std::vector<Request> All(TraceReader& reader) {
  std::vector<Request> requests;
  Request request;
  while (true) {
    const auto more = reader.Next(request);
    EXPECT_TRUE(more.ok()) << more.status();
    if (!more.ok() || !*more) return requests;
    requests.push_back(request);
  }
}

std::vector<Request> AllOf(const std::string& name, const TraceOptions& options = {}) {
  const auto reader = OpenTrace(kData + "/" + name, options);
  EXPECT_TRUE(reader.ok()) << reader.status();
  return reader.ok() ? All(**reader) : std::vector<Request>();
}

// What is wrong with a trace of these lines.
std::string ErrorOf(const std::string& lines) {
  const auto reader = NewTraceReader(LineReader::OfText("t", lines), {}, kData + "/ragpulse");
  absl::Status status = reader.status();
  Request request;
  while (status.ok()) {
    const auto more = (*reader)->Next(request);
    if (more.ok() && !*more) return "";
    status = more.status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(MooncakeTrace, BlocksFormAPrefix) {
  const auto requests = AllOf("mooncake.jsonl");
  ASSERT_EQ(requests.size(), 8u);
  const Request& second = requests[1];
  EXPECT_EQ(second.input_tokens, 7322u);
  EXPECT_EQ(second.output_tokens, 490u);
  ASSERT_EQ(second.accesses.size(), 15u);
  EXPECT_EQ(second.accesses[0].key, requests[0].accesses[0].key);  // the same first block
  EXPECT_EQ(second.accesses[1].key, 14u);
  for (size_t i = 0; i < second.accesses.size(); ++i) {
    EXPECT_EQ(second.accesses[i].depth, i);
    EXPECT_EQ(second.accesses[i].parent, static_cast<int32_t>(i) - 1);
    EXPECT_EQ(second.accesses[i].size, 512u);
    EXPECT_EQ(second.accesses[i].kind, ObjectKind::kKv);
  }
}

TEST(MooncakeTrace, TimeNeverGoesBack) {
  const auto reader = NewTraceReader(
      LineReader::OfText(
          "t", R"({"timestamp": 7, "input_length": 1, "output_length": 1, "hash_ids": []})"
               "\n"
               R"({"hash_ids": [1], "output_length": 1, "input_length": 1, "timestamp": 5})"),
      {}, "");
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->info().format, TraceFormat::kMooncake);
  const auto requests = All(**reader);
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].time_us, 7000u);
  EXPECT_EQ(requests[1].time_us, 7000u);
}

TEST(RagPulseTrace, PassagesAreObjectsOfTheirLength) {
  for (const char* name : {"ragpulse", "ragpulse/0_trace.jsonl"}) {
    const auto requests = AllOf(name);
    ASSERT_EQ(requests.size(), 6u);
    EXPECT_EQ(requests[0].time_us, 82'000'000u);
    ASSERT_EQ(requests[0].accesses.size(), 6u);
    const Access& first = requests[0].accesses[0];
    EXPECT_EQ(first.size, 113u);  // passage 7398
    EXPECT_EQ(first.kind, ObjectKind::kDocument);
    EXPECT_EQ(first.parent, -1);
    EXPECT_EQ(first.depth, 0);
    EXPECT_TRUE(requests[4].accesses.empty());
    // Passage 7374 of the second request and of the last.
    EXPECT_EQ(requests[1].accesses[3].key, requests[5].accesses[4].key);
  }
}

TEST(RagPulseTrace, ComponentsAreChosen) {
  const auto requests = AllOf("ragpulse", {.components = {"sys_prompt", "history", "user_input"}});
  ASSERT_EQ(requests[0].accesses.size(), 5u);
  EXPECT_EQ(requests[0].accesses[0].key, requests[1].accesses[0].key);
  EXPECT_EQ(requests[0].accesses[0].kind, ObjectKind::kKv);
  const auto wrong = OpenTrace(kData + "/ragpulse", {.components = {"passages", "prompt"}});
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("component 'prompt': expected one"));
}

TEST(RagPulseTrace, APromptIsAPrefix) {
  const auto requests = AllOf("ragpulse", {.components = {"prompt"}});
  ASSERT_EQ(requests[0].accesses.size(), 11u);
  const auto& first = requests[0].accesses;
  const auto& second = requests[1].accesses;
  EXPECT_EQ(first[1].key, second[1].key);
  EXPECT_NE(first[2].key, second[2].key);
  // Both have history 15200 after six passages, but not after the same ones.
  EXPECT_NE(first[9].key, second[9].key);
  EXPECT_EQ(first[9].parent, 8);
  EXPECT_EQ(first[9].depth, 9);
}

TEST(RoutingTrace, ReadsBothFormats) {
  const auto olmoe = OpenTrace(kData + "/olmoe.jsonl");
  ASSERT_TRUE(olmoe.ok()) << olmoe.status();
  EXPECT_EQ((*olmoe)->info().layers, 16u);
  EXPECT_EQ((*olmoe)->info().unit, SizeUnit::kExperts);
  const auto requests = All(**olmoe);
  ASSERT_EQ(requests.size(), 3u);
  ASSERT_EQ(requests[0].accesses.size(), 128u);
  EXPECT_EQ(requests[0].accesses[127].depth, 15);
  EXPECT_EQ(requests[0].accesses[127].kind, ObjectKind::kExpert);
  EXPECT_EQ(requests[0].accesses[0].key, requests[1].accesses[0].key);  // expert 6 of layer 0
  const auto tiny = AllOf("tiny_olmoe.jsonl");
  ASSERT_EQ(tiny.size(), 3u);
  ASSERT_EQ(tiny[0].accesses.size(), 32u);
  EXPECT_EQ(tiny[0].accesses[4].depth, 1);
  EXPECT_NE(tiny[0].accesses[0].key, tiny[0].accesses[5].key);
}

constexpr char kMooncake[] = R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1]})";

TEST(TraceErrors, NameFileLineAndField) {
  const std::string good = std::string(kMooncake) + "\n\n";
  EXPECT_EQ(ErrorOf(good), "");
  const std::pair<const char*, const char*> cases[] = {
      {R"({"timestamp":0,"input_length":1,"hash_ids":[]})", "t:3: no field 'output_length'"},
      {R"({"timestamp":0,"input_length":1,"output_length":-1,"hash_ids":[]})",
       "t:3: field 'output_length': expected a whole number"},
      {R"({"timestamp":1.5,"input_length":1,"output_length":1,"hash_ids":[]})",
       "t:3: field 'timestamp': expected a whole number"},
      {R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1,"x"]})",
       "t:3: field 'hash_ids': expected a list"},
      {R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[[1]]})",
       "t:3: field 'hash_ids': expected a list"},
      {R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":5})",
       "t:3: field 'hash_ids': expected a list"},
      {R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":{"a":[1]}})",
       "t:3: field 'hash_ids': expected a list"},
      {R"({"timestamp":0,"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[]})",
       "t:3: field 'timestamp' is there twice"},
      {R"({"timestamp":9007199254740993,"input_length":1,"output_length":1,"hash_ids":[]})",
       "t:3: field 'timestamp': more than"},
      {R"({"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1,)",
       "t:3: column 65: not valid JSON"},
      {"[1]", "t:3: not a JSON object"},
      {"7", "t:3: not a JSON object"},
      {"\xff\xfe", "t:3: column 1: not valid JSON"},
  };
  for (const auto& [line, message] : cases) {
    EXPECT_THAT(ErrorOf(good + line), StartsWith(message)) << line;
  }
}

TEST(TraceErrors, OfOtherFormats) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("no request"));
  EXPECT_THAT(ErrorOf(R"({"a": 1})"), StartsWith("t:1: not a trace that can be read"));
  const std::string rag = R"({"timestamp":"1","input_length":1,"output_length":1,"hash_ids":)";
  EXPECT_EQ(ErrorOf(rag + R"({"passages_ids":[477]}})"), "");
  EXPECT_THAT(ErrorOf(rag + R"({"passages_ids":[478]}})"),
              "t:1: field 'hash_ids.passages_ids': id 478 is not in 2_passages.jsonl");
  EXPECT_THAT(ErrorOf(rag + R"({"history":[]}})"), "t:1: field 'hash_ids': no list 'passages_ids'");
  EXPECT_THAT(ErrorOf(rag + R"({"passages_ids":7}})"), StartsWith("t:1: field 'hash_ids': expect"));
  EXPECT_THAT(ErrorOf(rag + R"({"passages_ids":{"x":[1]}}})"),
              StartsWith("t:1: field 'hash_ids': expect"));
  EXPECT_THAT(ErrorOf("{\"layers\":[[1],[2]]}\n{\"layers\":[[1]]}"),
              "t:2: field 'layers': 1 layers, where the first line has 2");
  EXPECT_THAT(ErrorOf("{\"layers\":[]}"), HasSubstr("0 layers; 1 to"));
  EXPECT_THAT(ErrorOf("{\"layers\":[[65536]]}"), HasSubstr("expert 65536 in layer 0; at most"));
}

TEST(TraceErrors, FieldsOfNoInterestMayBeAnything) {
  const std::string lines =
      R"({"extra":{"hash_ids":[[{}]],"x":[null,-1.5,"a"]},"timestamp":0,"input_length":1,)"
      R"("more":[[[{}]]],"output_length":1,"hash_ids":[1,2],"last":null})";
  EXPECT_EQ(ErrorOf(lines), "");
}

TEST(TraceErrors, OfPaths) {
  EXPECT_EQ(OpenTrace(kData + "/nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(OpenTrace(kData).status().message()), HasSubstr("without 0_trace.jsonl"));
  const auto alone =
      NewTraceReader(LineReader::OfText("t", R"({"hash_ids":{}})"), {}, kData + "/nowhere");
  EXPECT_EQ(alone.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(alone.status().message()), HasSubstr("2_passages.jsonl"));
}

}  // namespace
}  // namespace terrace::replay
