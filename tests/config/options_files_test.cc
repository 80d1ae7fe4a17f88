// The files operators read follow the table of keys. With TERRACE_WRITE_DOCS=1 in the environment
// this test writes them from it instead of comparing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "config/option_keys.h"
#include "config/options.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr char kExample[] = TERRACE_SOURCE_DIR "/config/terrace.example.toml";
constexpr char kReference[] = TERRACE_SOURCE_DIR "/docs/configuration.md";
constexpr char kBegin[] = "<!-- keys: written from config/option_keys.cc -->\n";
constexpr char kEnd[] = "<!-- end of keys -->\n";

std::string ReadFile(const char* path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

bool Writing() { return std::getenv("TERRACE_WRITE_DOCS") != nullptr; }

TEST(OptionsFiles, TheExampleIsTheTableAndParsesToTheDefaults) {
  if (Writing()) std::ofstream(kExample) << ExampleToml();
  const std::string example = ReadFile(kExample);
  EXPECT_EQ(example, ExampleToml());
  const absl::StatusOr<Options> parsed = ParseOptions(example, kExample);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, DefaultOptions());
}

TEST(OptionsFiles, TheReferenceHoldsTheTables) {
  std::string reference = ReadFile(kReference);
  size_t begin = reference.find(kBegin);
  size_t end = reference.find(kEnd);
  ASSERT_NE(begin, std::string::npos) << kReference << " lacks its marker " << kBegin;
  ASSERT_NE(end, std::string::npos) << kReference << " lacks its marker " << kEnd;
  begin += sizeof kBegin - 1;
  if (Writing()) {
    reference.replace(begin, end - begin, ReferenceTables());
    std::ofstream(kReference) << reference;
    end = reference.find(kEnd);
  }
  EXPECT_EQ(reference.substr(begin, end - begin), ReferenceTables())
      << "run config_test with TERRACE_WRITE_DOCS=1";
}

TEST(OptionsFiles, EveryKeyIsInBoth) {
  const std::string example = ReadFile(kExample);
  const std::string reference = ReadFile(kReference);
  for (const OptionSection& section : OptionSections()) {
    for (const OptionKey& key : section.keys) {
      const std::string name(key.name);
      EXPECT_THAT(example, HasSubstr(name + " = "));
      EXPECT_THAT(reference, HasSubstr("`" + std::string(section.name) + "." + name + "`"));
      EXPECT_EQ(key.default_note.empty(), key.sample.empty()) << name;
    }
  }
}

// What the example shows commented out must be accepted when the comment sign is taken away.
TEST(OptionsFiles, CommentedSamplesAreAccepted) {
  std::string text;
  std::istringstream example(ExampleToml());
  for (std::string line; std::getline(example, line);) {
    const bool sample = line.rfind("# ", 0) == 0 && line.find(" = ") != std::string::npos;
    if (line == "# [[tenants]]")
      line = "[[tenants]]";
    else if (line.rfind("# salt", 0) == 0)
      line = "salt = \"" + std::string(64, '0') + "\"";
    else if (sample)
      line = line.substr(2);
    text += line + "\n";
  }
  const absl::StatusOr<Options> parsed = ParseOptions(text, "uncommented");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tenants.size(), 1u);
  EXPECT_TRUE(parsed->tenants[0].salt && parsed->tenants[0].host_capacity);
  EXPECT_FALSE(parsed->nvme.directory.empty());
}

}  // namespace
}  // namespace terrace
