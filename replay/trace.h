// A trace of what requests wanted from a cache, read a request at a time: memory does not grow with
// the length of the trace. Formats: see OpenTrace. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "config/object_layout.h"
#include "replay/line_reader.h"

namespace terrace::replay {

struct Access {
  uint64_t key = 0;      // any 64 bits; equal keys are one object
  uint64_t size = 1;     // in TraceInfo::unit
  uint32_t cost_us = 0;  // of making the object anew; 0: not known
  uint16_t depth = 0;    // objects before it in its prefix, at most 65535; of an expert, its layer
  ObjectKind kind = ObjectKind::kKv;
  int32_t parent = -1;  // the one before it in its prefix: an index into Request::accesses, or none
};

struct Request {
  uint64_t time_us = 0;  // since the trace began; never less than that of the request before
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  std::vector<Access> accesses;  // a parent before its children
};

enum class TraceFormat : uint8_t { kMooncake, kRagPulse, kRouting };
enum class SizeUnit : uint8_t { kTokens, kExperts };

struct TraceInfo {
  TraceFormat format;
  SizeUnit unit;
  bool timed;           // else every request is at 0
  uint32_t layers = 1;  // kRouting: of the model
};
std::string_view TraceFormatName(TraceFormat format);  // "mooncake", "ragpulse", "routing"

struct TraceOptions {
  // RAGPulse: which parts of a prompt are accesses, by the names of their fields or short
  // (passages, sys_prompt, history, web_search, user_input), each part an object of its own. Or
  // only "prompt": all of them as one prefix, where an object is a part after all those before it.
  std::vector<std::string> components = {"passages"};
};

class TraceReader {
 public:
  virtual ~TraceReader() = default;
  // False at the end. `request` is overwritten; its vector is reused. InvalidArgument for a line
  // that is not of the format, naming file, line and field; Internal when reading fails. After an
  // error there is no going on.
  virtual absl::StatusOr<bool> Next(Request& request) = 0;
  virtual const TraceInfo& info() const = 0;
  virtual uint64_t bytes_read() const = 0;
};

// Recognises the format by the first line:
// - Mooncake: a JSON object a line with timestamp (ms), input_length, output_length and hash_ids, a
//   list of blocks of 512 tokens, each named by all the tokens up to its end. A last block that is
//   not full counts 512, too.
// - RAGPulse: the directory, or the file 0_trace.jsonl in it. hash_ids is an object of lists;
//   timestamp in seconds. The tables of token lengths beside it are read for the components asked
//   for, which is what memory grows with.
// - Routing: a JSON object a token with layers, a list of the experts chosen in each. An object is
//   (layer, expert); a request is a token.
// NotFound, FailedPrecondition or InvalidArgument, naming the path.
absl::StatusOr<std::unique_ptr<TraceReader>> OpenTrace(const std::string& path,
                                                       const TraceOptions& options = {});
// The same for lines from elsewhere; `directory` holds RAGPulse's tables.
absl::StatusOr<std::unique_ptr<TraceReader>> NewTraceReader(std::unique_ptr<LineReader> lines,
                                                            const TraceOptions& options,
                                                            const std::string& directory);

}  // namespace terrace::replay
