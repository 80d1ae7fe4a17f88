#include "bench/report.h"

#include <sched.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/format.h"
#include "client/json_writer.h"

namespace terrace::bench {
namespace {

std::string SimdOf(const std::string& cpuinfo_path) {
  std::ifstream cpuinfo(cpuinfo_path);
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line);
    const std::vector<std::string> flags{std::istream_iterator<std::string>(words), {}};
    for (const char* wanted : {"amx_bf16", "avx512f", "avx2", "sse4_2", "sve", "asimd"}) {
      if (std::find(flags.begin(), flags.end(), wanted) != flags.end()) return wanted;
    }
  }
  return "unknown";
}

// Source device and file system type of the mount that holds `path`.
std::string DiskOf(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return "unknown";
  const std::string wanted = absl::StrCat(major(info.st_dev), ":", minor(info.st_dev));
  std::ifstream mounts("/proc/self/mountinfo");
  std::string line;
  while (std::getline(mounts, line)) {
    // "36 35 98:0 /root /mount opts... - type source superopts"
    std::istringstream words(line);
    std::string id, parent, device, word;
    words >> id >> parent >> device;
    if (device != wanted) continue;
    while (words >> word && word != "-") {
    }
    std::string type, source;
    words >> type >> source;
    return absl::StrCat(source, " (", type, ")");
  }
  return absl::StrCat("device ", wanted);
}

// Four significant digits without an exponent for the sizes that occur.
std::string Short(double value) {
  if (value >= 1000) return absl::StrFormat("%.0f", value);
  return value >= 100 ? absl::StrFormat("%.1f", value) : absl::StrFormat("%.3g", value);
}

}  // namespace

Machine DescribeMachine(const std::string& scratch_dir) {
  Machine machine;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) {
    machine.cores = static_cast<uint32_t>(CPU_COUNT(&cpus));
  }
  machine.memory_bytes =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  machine.simd = SimdOf("/proc/cpuinfo");
  machine.disk = DiskOf(scratch_dir);
  return machine;
}

std::string RenderTable(const std::string& suite, const std::vector<Row>& rows) {
  using Align = cli::Table::Align;
  cli::Table table({{suite},
                    {"VALUE", Align::kRight},
                    {"UNIT"},
                    {"REFERENCE", Align::kRight},
                    {"RATIO", Align::kRight},
                    {"RANGE"},
                    {"PAIRS", Align::kRight},
                    {"AGAINST"}});
  for (const Row& row : rows) {
    table.AddRow({row.name, Short(row.value), row.unit, Short(row.reference_value),
                  absl::StrFormat("%.2fx", row.ratio_median),
                  absl::StrFormat("%.2f - %.2f", row.ratio_min, row.ratio_max),
                  absl::StrCat(row.pairs), row.reference_name});
  }
  std::string out = table.Render();
  for (const Row& row : rows) {
    if (!row.note.empty()) absl::StrAppend(&out, "  ", row.name, ": ", row.note, "\n");
  }
  return out;
}

std::string RenderJson(const std::string& suite, const Machine& machine,
                       const std::vector<Row>& rows) {
  JsonWriter json(2);
  json.BeginObject().Field("suite", suite);
  json.Key("machine")
      .BeginObject()
      .Field("cores", machine.cores)
      .Field("memory_bytes", machine.memory_bytes)
      .Field("simd", machine.simd)
      .Field("disk", machine.disk)
      .EndObject();
  json.Key("rows").BeginArray();
  for (const Row& row : rows) {
    json.BeginObject()
        .Field("name", row.name)
        .Field("unit", row.unit)
        .Field("value", row.value)
        .Field("reference_name", row.reference_name)
        .Field("reference_value", row.reference_value)
        .Field("ratio_median", row.ratio_median)
        .Field("ratio_min", row.ratio_min)
        .Field("ratio_max", row.ratio_max)
        .Field("pairs", row.pairs);
    if (!row.note.empty()) json.Field("note", row.note);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text() + "\n";
}

}  // namespace terrace::bench
