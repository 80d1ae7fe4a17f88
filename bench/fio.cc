#include "bench/fio.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "bench/json_fields.h"
#include "bench/process.h"

namespace terrace::bench {
namespace {

constexpr double kTimeoutSeconds = 300;
// Makes malloc, where fio has its buffers from, ask for huge pages: what the tier reads into is on
// them too. On 4 KiB pages a request of 1 MiB is longer than what a virtio disk takes at once, and
// fio reads at half the speed: no reference.
constexpr char kHugePages[] = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1";

absl::Status Missing(const std::string& job, const char* member) {
  return absl::InvalidArgumentError(absl::StrCat("fio job '", job, "' has no ", member));
}

absl::StatusOr<FioFlow> ReadFlow(const std::string& job, const nlohmann::json& object,
                                 const char* direction) {
  const nlohmann::json* flow = Member(object, direction);
  if (flow == nullptr) return Missing(job, direction);
  const auto bytes = Number(*flow, "io_bytes");
  const auto requests = Number(*flow, "total_ios");
  const auto runtime_ms = Number(*flow, "runtime");
  if (!bytes || !requests || !runtime_ms) return Missing(job, "io_bytes, total_ios or runtime");
  FioFlow result;
  result.bytes = static_cast<uint64_t>(*bytes);
  result.requests = static_cast<uint64_t>(*requests);
  result.seconds = *runtime_ms / 1e3;
  if (result.requests == 0) return result;
  const nlohmann::json* latency = Member(*flow, "clat_ns");
  const nlohmann::json* percentiles = latency == nullptr ? nullptr : Member(*latency, "percentile");
  const auto p99_ns = percentiles == nullptr ? std::nullopt : Number(*percentiles, "99.000000");
  if (!p99_ns) return Missing(job, "clat_ns percentile 99.000000");
  result.p99_clat_seconds = *p99_ns / 1e9;
  return result;
}

absl::StatusOr<FioJob> ReadJob(const nlohmann::json& object) {
  FioJob job;
  job.name = Text(object, "jobname").value_or("");
  if (job.name.empty()) return Missing("", "jobname");
  const auto error = Number(object, "error");
  if (!error) return Missing(job.name, "error");
  if (*error != 0) {
    return absl::InternalError(absl::StrCat("fio job '", job.name, "' failed, errno ", *error));
  }
  const auto read = ReadFlow(job.name, object, "read");
  if (!read.ok()) return read.status();
  const auto write = ReadFlow(job.name, object, "write");
  if (!write.ok()) return write.status();
  job.read = *read;
  job.write = *write;
  const auto user = Number(object, "usr_cpu"), system = Number(object, "sys_cpu");
  const auto runtime_ms = Number(object, "job_runtime");
  if (!user || !system || !runtime_ms) return Missing(job.name, "usr_cpu, sys_cpu or job_runtime");
  job.cpu_seconds = (*user + *system) / 100 * *runtime_ms / 1e3;
  return job;
}

}  // namespace

absl::StatusOr<std::vector<FioJob>> ParseFio(std::string_view output) {
  // Warnings stand before the object, on lines of their own.
  const size_t begin = output.starts_with('{') ? 0 : output.find("\n{");
  const nlohmann::json parsed =
      ParseJson(begin == std::string_view::npos ? std::string_view() : output.substr(begin));
  const nlohmann::json* list = Member(parsed, "jobs");
  if (list == nullptr || !list->is_array() || list->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("fio wrote no jobs: ", std::string(output.substr(0, 300))));
  }
  std::vector<FioJob> jobs;
  for (const nlohmann::json& object : *list) {
    auto job = ReadJob(object);
    if (!job.ok()) return job.status();
    jobs.push_back(*std::move(job));
  }
  return jobs;
}

std::vector<std::string> FioJobArguments(const std::string& name, const std::string& file,
                                         uint64_t bytes, const std::string& rw,
                                         const std::string& block, int depth) {
  return {"--name=" + name,
          "--filename=" + file,
          "--ioengine=io_uring",
          "--direct=1",
          "--rw=" + rw,
          "--bs=" + block,
          "--size=" + absl::StrCat(bytes),
          "--iodepth=" + absl::StrCat(depth)};
}

absl::StatusOr<std::vector<FioJob>> RunFio(const Context& context,
                                           const std::vector<std::string>& arguments) {
  const std::string output = context.scratch_dir + "/fio.json";
  std::vector<std::string> argv = {"fio", "--output-format=json", "--output=" + output};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const absl::Status ran =
      RunProgram(argv, {kTimeoutSeconds, context.scratch_dir + "/fio.err", {kHugePages}});
  if (!ran.ok()) return ran;
  std::ifstream file(output);
  std::stringstream text;
  text << file.rdbuf();
  return ParseFio(text.str());
}

absl::Status LayOutFile(const Context& context, const std::string& file, uint64_t bytes) {
  std::vector<std::string> arguments = FioJobArguments("lay_out", file, bytes, "write", "4M", 16);
  arguments.push_back("--end_fsync=1");
  return RunFio(context, arguments).status();
}

}  // namespace terrace::bench
