#include "client/json_writer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>

#include "client/status_json.h"

namespace terrace {
namespace {

TEST(JsonQuote, EscapesControlsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonQuote("a\"b\\c\n\t\r"), R"("a\"b\\c\n\t\r")");
  EXPECT_EQ(JsonQuote(std::string("\0\x1f\x7f", 3)), "\"\\u0000\\u001f\\u007f\"");
  EXPECT_EQ(JsonQuote("h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"),
            "\"h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\"");
  constexpr char kReplacement[] = "\xEF\xBF\xBD";
  const std::string r = kReplacement;
  EXPECT_EQ(JsonQuote("\xff"), "\"" + r + "\"");
  EXPECT_EQ(JsonQuote("\xC3"), "\"" + r + "\"");                  // cut short
  EXPECT_EQ(JsonQuote("\xC0\xAF"), "\"" + r + r + "\"");          // over-long
  EXPECT_EQ(JsonQuote("\xED\xA0\x80"), "\"" + r + r + r + "\"");  // a surrogate
  EXPECT_EQ(JsonQuote("\x80x"), "\"" + r + "x\"");                // a lone continuation
}

TEST(JsonWriter, PlacesCommasAtEveryDepth) {
  JsonWriter json;
  json.BeginObject().Field("a", 1).Key("b").BeginArray().Int(-2).Bool(true).Null();
  json.BeginObject().EndObject().BeginArray().EndArray().EndArray().Field("c", "d").EndObject();
  EXPECT_EQ(json.text(), R"({"a":1,"b":[-2,true,null,{},[]],"c":"d"})");
}

TEST(JsonWriter, IndentsWhenAsked) {
  JsonWriter json(2);
  json.BeginObject().Field("a", false).Key("b").BeginArray().Int(1).EndArray().EndObject();
  EXPECT_EQ(json.text(), "{\n  \"a\": false,\n  \"b\": [\n    1\n  ]\n}");
}

TEST(JsonWriter, NumbersReadBackEqual) {
  JsonWriter json;
  json.BeginArray()
      .Int(std::numeric_limits<uint64_t>::max())
      .Int(std::numeric_limits<int64_t>::min())
      .Double(0.1)
      .Double(1e300)
      .Double(std::numeric_limits<double>::infinity())
      .EndArray();
  EXPECT_EQ(json.text(), "[18446744073709551615,-9223372036854775808,0.1,1e+300,null]");
}

TEST(StatusJson, HasEveryDocumentedKey) {
  StatusReply status;
  status.version = "1.2";
  status.pid = 7;
  TierStatus& tier = status.tiers.emplace_back();
  tier.name = "host";
  tier.detail = "4 KiB \"pages\"";
  tier.used_bytes = 5;
  SessionStatus& session = status.sessions.emplace_back();
  session.id = 3;
  session.pid = 9;
  session.client_name = "x";
  status.counters = {{"lookup_hits", 2}};
  EXPECT_EQ(StatusJson(status),
            R"({"version":"1.2","pid":7,"uptime_ms":0,"socket_path":"","state_dir":"",)"
            R"("verify":"crossing","tiers":[{"name":"host","detail":"4 KiB \"pages\"",)"
            R"("capacity_bytes":0,"used_bytes":5,"objects":0,"populated_bytes":0,)"
            R"("huge_page_bytes":0}],"sessions":[{"id":3,"pid":9,"uid":0,"client_name":"x",)"
            R"("tenant":"","leases":0,"reservations":0,"age_ms":0}],"objects":0,"leases":0,)"
            R"("reservations":0,"counters":{"lookup_hits":2}})");
}

}  // namespace
}  // namespace terrace
