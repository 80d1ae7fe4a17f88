#include "replay/line_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace terrace::replay {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> All(LineReader& reader) {
  std::vector<std::string> lines;
  while (true) {
    const auto line = reader.Next();
    EXPECT_TRUE(line.ok()) << line.status();
    if (!line.ok() || !line->has_value()) return lines;
    lines.emplace_back(**line);
  }
}

TEST(LineReader, SkipsBlankLinesAndEndsOfLines) {
  const auto reader = LineReader::OfText("t", "a\r\n\n  \nb c \n\nlast");
  EXPECT_THAT(All(*reader), ElementsAre("a", "b c", "last"));
  EXPECT_THAT(std::string(reader->Error("wrong").message()), "t:6: wrong");
}

TEST(LineReader, GivesALineAgain) {
  const auto reader = LineReader::OfText("t", "a\nb\n");
  EXPECT_EQ(**reader->Next(), "a");
  reader->Unread();
  EXPECT_THAT(All(*reader), ElementsAre("a", "b"));
}

TEST(LineReader, ReadsPipesAndLinesLongerThanItsBuffer) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const std::string lengthy(3 << 20, 'x');
  std::thread writer([&] {
    for (const std::string& text : {"first\n" + lengthy + "\n", std::string("end")}) {
      for (size_t done = 0; done < text.size();) {
        const ssize_t wrote = write(ends[1], text.data() + done, text.size() - done);
        ASSERT_GT(wrote, 0);
        done += wrote;
      }
    }
    close(ends[1]);
  });
  const auto reader = LineReader::Open("/dev/fd/" + std::to_string(ends[0]));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_THAT(All(**reader), ElementsAre("first", lengthy, "end"));
  writer.join();
  close(ends[0]);
  EXPECT_EQ((*reader)->bytes_read(), lengthy.size() + 10);
}

TEST(LineReader, RefusesWhatHasNoLines) {
  const auto reader = LineReader::OfText("t", "a\n" + std::string(kMaxLineBytes + 2, 'x'));
  EXPECT_EQ(**reader->Next(), "a");
  const auto line = reader->Next();
  EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(line.status().message()), HasSubstr("t:2: the line is longer than"));
}

TEST(LineReader, SaysWhyAFileCannotBeRead) {
  EXPECT_EQ(LineReader::Open("/nowhere/at/all").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LineReader::Open("/").status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace terrace::replay
