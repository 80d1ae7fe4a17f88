#include "transport/resp_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "transport/resp_lmcache.h"

namespace terrace {
namespace {

using Event = RespParser::Event;

// Everything the parser makes of the text, arriving `step` bytes at a time; values are taken out.
std::vector<std::string> ParseAll(const std::string& text, size_t step) {
  RespParser parser;
  std::vector<std::string> seen;
  std::string input;
  size_t fed = 0;
  while (true) {
    size_t used = 0;
    const Event event = parser.Next(input, used);
    input.erase(0, used);
    if (event == Event::kNeedMore) {
      if (fed == text.size()) return seen;
      input += text.substr(fed, step);
      fed = std::min(fed + step, text.size());
    } else if (event == Event::kValue) {
      std::string value;
      while (value.size() < parser.value_bytes()) {
        if (input.empty()) {
          input = text.substr(fed, step);
          fed = std::min(fed + step, text.size());
          if (input.empty()) return seen;
        }
        const size_t bytes = std::min<size_t>(parser.value_bytes() - value.size(), input.size());
        value += input.substr(0, bytes);
        input.erase(0, bytes);
      }
      parser.ValueTaken();
      seen.push_back("value " + value);
    } else if (event == Event::kValueEnd) {
      seen.push_back("end");
    } else if (event == Event::kViolation) {
      seen.push_back(std::string("violation ") + parser.error());
      return seen;
    } else {
      std::string command = event == Event::kTooLarge ? "too large" : "command";
      for (const std::string& arg : parser.args()) command += " [" + arg + "]";
      seen.push_back(command);
    }
  }
}

void ExpectParsed(const std::string& text, const std::vector<std::string>& expected) {
  for (const size_t step : {size_t{1}, size_t{2}, size_t{7}, text.size()}) {
    EXPECT_EQ(ParseAll(text, step), expected) << "in steps of " << step << ": " << text;
  }
}

TEST(RespParser, ArraysInAnyPieces) {
  ExpectParsed("*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nget\r\n$1\r\nk\r\n",
               {"command [PING]", "command [get] [k]"});
}

TEST(RespParser, ValuesAreTheCallers) {
  ExpectParsed("*3\r\n$3\r\nsEt\r\n$1\r\nk\r\n$5\r\n*1\r\n$\r\n",
               {"value *1\r\n$", "end", "command [sEt] [k] []"});
  ExpectParsed("*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$0\r\n\r\n$1\r\nb\r\n$2\r\nxy\r\n",
               {"value ", "end", "value xy", "end", "command [MSET] [a] [] [b] []"});
  // Options behind it are arguments.
  ExpectParsed("*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n$2\r\nEX\r\n$1\r\n9\r\n",
               {"value v", "end", "command [SET] [k] [] [EX] [9]"});
}

TEST(RespParser, BinaryArguments) {
  const std::string key("\0\r\n\xff", 4);
  ExpectParsed("*2\r\n$3\r\nGET\r\n$4\r\n" + key + "\r\n", {"command [GET] [" + key + "]"});
}

TEST(RespParser, InlineCommands) {
  ExpectParsed("PING\r\n  get  k \n\r\nset a b\r\n",
               {"command [PING]", "command [get] [k]", "command", "command [set] [a] [b]"});
}

TEST(RespParser, EmptyArraysAreEmptyCommands) {
  ExpectParsed("*0\r\n*-1\r\nPING\r\n", {"command", "command", "command [PING]"});
}

TEST(RespParser, Violations) {
  ExpectParsed("*x\r\n", {"violation invalid multibulk length"});
  ExpectParsed("*99999999\r\n", {"violation invalid multibulk length"});
  ExpectParsed("*99999999999999999999999999999999\r\n", {"violation line too long"});
  ExpectParsed("*1\r\n+4\r\nPING\r\n", {"violation expected '$'"});
  ExpectParsed("*1\r\n$-1\r\n", {"violation invalid bulk length"});
  ExpectParsed("*1\r\n$9999999999\r\n", {"violation invalid bulk length"});
  ExpectParsed("*1\r\n$4\r\nPINGS\r\n", {"violation a bulk string is longer than it says"});
  ExpectParsed("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nvvv\r\n",
               {"value v", "violation a bulk string is longer than it says"});
  ExpectParsed(std::string(RespParser::kMaxLineBytes, 'a'), {"violation line too long"});
}

TEST(RespParser, StaysInStepWithArgumentsThatAreTooLong) {
  const std::string longest(RespParser::kMaxArgumentBytes + 1, 'k');
  const std::string text = "*2\r\n$3\r\nGET\r\n$" + std::to_string(longest.size()) + "\r\n" +
                           longest + "\r\n*1\r\n$4\r\nPING\r\n";
  for (const size_t step : {size_t{1000}, text.size()}) {
    EXPECT_EQ(ParseAll(text, step),
              (std::vector<std::string>{"too large [GET]", "command [PING]"}));
  }
}

// What is announced costs nothing before it arrives.
TEST(RespParser, AnnouncementsAreFree) {
  RespParser parser;
  size_t used = 0;
  EXPECT_EQ(parser.Next("*1000000\r\n$4294967296\r\n", used), Event::kNeedMore);
  EXPECT_TRUE(parser.inside());
  EXPECT_TRUE(parser.args().empty());
}

TEST(RespLmcacheSizes, MissIsAsLongAsTheHeader) {
  RespLmcacheSizes sizes;
  const std::string a = "model-a@00000000@0@00aa", b = "model-b@00000000@0@00bb@salt";
  sizes.Seen(a, 5898240);
  sizes.Seen(b, 999);
  EXPECT_EQ(sizes.MissLine("model-a@00000000@0@ffff").size(), std::string("$5898240\r\n").size());
  EXPECT_EQ(sizes.MissLine("model-b@00000000@0@ffff@salt"), "-MIS\r\n");
  EXPECT_EQ(sizes.MissLine("never seen").size(), std::string("$999\r\n").size());
  for (int i = 0; i < 1000; ++i) sizes.Seen("m" + std::to_string(i) + "@0@0@0", 1 << 20);
  EXPECT_EQ(sizes.MissLine("m999@0@0@1"), "-MISS___\r\n");
}

}  // namespace
}  // namespace terrace
