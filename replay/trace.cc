#include "replay/trace.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "replay/json_record.h"
#include "replay/trace_formats.h"

namespace terrace::replay {
namespace {

constexpr char kRagPulseTrace[] = "0_trace.jsonl";

}  // namespace

std::string_view TraceFormatName(TraceFormat format) {
  switch (format) {
    case TraceFormat::kMooncake:
      return "mooncake";
    case TraceFormat::kRagPulse:
      return "ragpulse";
    case TraceFormat::kRouting:
      return "routing";
  }
  return "";
}

absl::StatusOr<std::unique_ptr<TraceReader>> NewTraceReader(std::unique_ptr<LineReader> lines,
                                                            const TraceOptions& options,
                                                            const std::string& directory) {
  const auto line = lines->Next();
  if (!line.ok()) return line.status();
  if (!line->has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(lines->name(), ": no request in it"));
  }
  const auto fields = TopFields(**line);
  if (!fields.ok()) return lines->Error(fields.status().message());
  lines->Unread();
  for (const TopField& field : *fields) {
    if (field.name == "layers") return NewRoutingReader(std::move(lines));
    if (field.name != "hash_ids") continue;
    if (field.is_object) return NewRagPulseReader(std::move(lines), options, directory);
    return NewMooncakeReader(std::move(lines));
  }
  return lines->Error(
      "not a trace that can be read: no field 'hash_ids' (Mooncake, RAGPulse) or 'layers' "
      "(routing)");
}

absl::StatusOr<std::unique_ptr<TraceReader>> OpenTrace(const std::string& path,
                                                       const TraceOptions& options) {
  std::error_code ignored;
  std::filesystem::path file(path);
  if (std::filesystem::is_directory(file, ignored)) {
    file /= kRagPulseTrace;
    if (!std::filesystem::exists(file, ignored)) {
      return absl::NotFoundError(absl::StrCat(path, ": a directory without ", kRagPulseTrace,
                                              "; of RAGPulse it would be there"));
    }
  }
  auto lines = LineReader::Open(file.string());
  if (!lines.ok()) return lines.status();
  const std::string directory = file.has_parent_path() ? file.parent_path().string() : ".";
  return NewTraceReader(*std::move(lines), options, directory);
}

}  // namespace terrace::replay
