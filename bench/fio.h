// fio as a reference: runs jobs, reads their figures.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/bench.h"

namespace terrace::bench {

// One direction of a job.
struct FioFlow {
  uint64_t bytes = 0;
  uint64_t requests = 0;
  double seconds = 0;           // of wall clock, an fsync at the end included
  double p99_clat_seconds = 0;  // from submission to completion; 0 without requests
};

struct FioJob {
  std::string name;
  FioFlow read, write;
  double cpu_seconds = 0;  // user and system, of the job's process
};

// What `fio --output-format=json` wrote, possibly behind lines of warnings. InvalidArgument naming
// the member that is missing; Internal when a job says that it failed.
absl::StatusOr<std::vector<FioJob>> ParseFio(std::string_view output);

// A job on one file with io_uring and O_DIRECT. `rw` and `block` as fio has them: "randread", "1M".
std::vector<std::string> FioJobArguments(const std::string& name, const std::string& file,
                                         uint64_t bytes, const std::string& rw,
                                         const std::string& block, int depth);

// Runs one fio with the arguments of one job or more, with buffers on huge pages. Leaves its output
// in the scratch directory.
absl::StatusOr<std::vector<FioJob>> RunFio(const Context& context,
                                           const std::vector<std::string>& arguments);

// Writes the file once, so that later jobs find it laid out.
absl::Status LayOutFile(const Context& context, const std::string& file, uint64_t bytes);

}  // namespace terrace::bench
