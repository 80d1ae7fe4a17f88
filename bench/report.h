// How terrace-bench says what it measured: a table for people, JSON for machines.
#pragma once

#include <string>
#include <vector>

#include "bench/bench.h"

namespace terrace::bench {

struct Machine {
  uint32_t cores = 0;         // that this process may run on
  uint64_t memory_bytes = 0;  // of the machine
  std::string simd;           // the widest that matters to the kernels, e.g. "avx512f"
  std::string disk;           // device and file system under the scratch directory
};
Machine DescribeMachine(const std::string& scratch_dir);

std::string RenderTable(const std::string& suite, const std::vector<Row>& rows);
// {"suite", "machine": {...}, "rows": [...]} as DESIGN section 10 has it.
std::string RenderJson(const std::string& suite, const Machine& machine,
                       const std::vector<Row>& rows);

}  // namespace terrace::bench
