// ttft: time to first token of a real model. The engine is Python, so bench/ttft.py measures, and
// its rows join ours.
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "bench/process.h"
#include "bench/read_rows.h"

namespace terrace::bench {
namespace {

constexpr double kTimeoutSeconds = 900;
constexpr char kSourceDir[] = TERRACE_SOURCE_DIR;

}  // namespace

absl::StatusOr<std::vector<Row>> RunTtft(const Context& context) {
  const std::string python = absl::StrCat(kSourceDir, "/build/venv/bin/python");
  const std::string script = absl::StrCat(kSourceDir, "/bench/ttft.py");
  for (const std::string& needed : {python, script}) {
    if (!std::filesystem::exists(needed)) {
      return absl::NotFoundError(absl::StrCat(needed, " is missing (scripts/bootstrap)"));
    }
  }
  const std::string json_path = context.scratch_dir + "/ttft.json";
  const absl::Status ran =
      RunProgram({python, script, "--json", json_path},
                 {kTimeoutSeconds, "", {"TERRACE_BUILD_DIR=" + context.binary_dir}});
  if (!ran.ok()) return ran;
  std::ifstream file(json_path);
  std::stringstream text;
  text << file.rdbuf();
  return ReadRows(text.str());
}

}  // namespace terrace::bench
