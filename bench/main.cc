// terrace-bench: runs suites, prints a table for people and writes JSON for machines.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/report.h"

namespace terrace::bench {
namespace {

constexpr Suite kSuites[] = {
    {"rpc", "lookup of a 256-chunk prefix against a bare Unix socket", RunRpc},
    {"store", "storing 64 MiB objects against memcpy into shared memory", RunStore},
    {"load", "reading 64 MiB objects in place against private memory", RunLoad},
    {"footprint", "the daemon's own memory at 1,000,000 objects", RunFootprint},
    {"ttft", "time to first token of a real model, cold and restored", RunTtft},
    {"nvme", "the NVMe tier's reads, writes and CPU against fio", RunNvme},
    {"restart", "1,000,000 records on NVMe: the first lookup, the index", RunRestart},
    {"codec", "encoding and decoding KV on one core against memcpy", RunCodec},
    {"links", "a prefix through slower links: the daemon's choice of codec against each one",
     RunLinks},
    {"replay", "traces through the eviction policies against splitting their lines", RunReplay},
    {"endurance", "bytes written to the device while a real trace is replayed", RunEndurance},
    {"resize", "reading while the host tier shrinks and grows, against before; a flooding tenant",
     RunResize},
    {"mrc", "the online miss-ratio curve against the exact one on real traces", RunMrc},
    {"hints", "a hinted prefix against one that was not; demand under useless hints", RunHints},
    {"victim", "waiting for objects in HBM a tenth of the working set, against LRU", RunVictim},
    {"policy", "eviction policies at 1,000,000 objects against a bare linked list", RunPolicy},
};

constexpr char kFooter[] = R"(Examples:
  terrace-bench rpc                     one suite
  terrace-bench all --json bench.json   every suite, and the figures for machines

Every figure is a ratio against a reference measured in the same run, alternated. Each suite starts
a terraced of its own (the binary next to terrace-bench) and stops it.
Exit codes: 0 ok, 1 a suite failed, 2 usage)";

// A directory next to the program, or under /var/tmp when that would make the socket's path longer
// than the kernel accepts. Neither is tmpfs as a rule, which O_DIRECT needs.
std::string MakeScratch(const std::string& binary_dir) {
  constexpr size_t kLongestBase = 60;
  std::string base = binary_dir.size() <= kLongestBase ? binary_dir : "/var/tmp";
  std::string pattern = base + "/bench-XXXXXX";
  return mkdtemp(pattern.data()) == nullptr ? "" : pattern;
}

std::vector<const Suite*> Select(const std::vector<std::string>& names, std::string& unknown) {
  std::vector<const Suite*> selected;
  for (const std::string& name : names) {
    const size_t before = selected.size();
    for (const Suite& suite : kSuites) {
      if (name == "all" || name == suite.name) selected.push_back(&suite);
    }
    if (selected.size() == before) unknown = name;
  }
  return selected;
}

// Runs the suites in turn; a failed one is reported and the rest still run.
int RunSuites(const std::vector<const Suite*>& suites, const Context& context,
              const std::string& title, const std::string& json_path) {
  const Machine machine = DescribeMachine(context.scratch_dir);
  std::printf("machine: %u cores, %.1f GiB, %s, %s\n", machine.cores,
              static_cast<double>(machine.memory_bytes) / (1 << 30), machine.simd.c_str(),
              machine.disk.c_str());
  int exit_code = 0;
  std::vector<Row> all_rows;
  for (const Suite* suite : suites) {
    const auto rows = suite->run(context);
    if (!rows.ok()) {
      std::fprintf(stderr, "terrace-bench: %s: %s\n", suite->name,
                   rows.status().ToString().c_str());
      exit_code = 1;
      continue;
    }
    std::printf("\n%s", RenderTable(suite->name, *rows).c_str());
    std::fflush(stdout);
    all_rows.insert(all_rows.end(), rows->begin(), rows->end());
  }
  if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << RenderJson(title, machine, all_rows);
    file.flush();
    if (!file) {
      std::fprintf(stderr, "terrace-bench: cannot write %s\n", json_path.c_str());
      exit_code = 1;
    }
  }
  return exit_code;
}

int Main(int argc, char** argv) {
  CLI::App app("terrace-bench: measures terrace against references on this machine",
               "terrace-bench");
  app.footer(kFooter);
  bool list = false;
  std::string json_path;
  std::vector<std::string> names;
  app.add_flag("--list", list, "List the suites");
  app.add_option("--json", json_path, "Also write the figures to this file")->type_name("FILE");
  app.add_option("SUITE", names, "Suites to run, or all");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (list) {
    for (const Suite& suite : kSuites) std::printf("%-10s %s\n", suite.name, suite.what);
    return 0;
  }
  std::string unknown;
  const std::vector<const Suite*> suites = Select(names, unknown);
  if (suites.empty() || !unknown.empty()) {
    std::fprintf(stderr, "terrace-bench: %s; see terrace-bench --list\n",
                 unknown.empty() ? "no suite given" : ("no suite '" + unknown + "'").c_str());
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  Context context;
  context.binary_dir = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  context.scratch_dir = MakeScratch(context.binary_dir);
  if (context.scratch_dir.empty()) {
    std::perror("terrace-bench: scratch directory");
    return 1;
  }
  std::string title;
  for (const std::string& name : names) title += (title.empty() ? "" : ",") + name;
  const int exit_code = RunSuites(suites, context, title, json_path);
  std::error_code ignored;
  std::filesystem::remove_all(context.scratch_dir, ignored);
  return exit_code;
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) { return terrace::bench::Main(argc, argv); }
