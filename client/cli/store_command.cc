// terrace store inspect: the one command that looks at files instead of asking a daemon.
#include <cstdio>
#include <map>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/json_writer.h"
#include "client/object_json.h"
#include "tiers/nvme/inspect.h"

namespace terrace::cli {
namespace {

using nvme::InspectedRecord;
using nvme::InspectedSegment;
using nvme::StoreReport;

const char* Name(InspectedSegment::State state) {
  switch (state) {
    case InspectedSegment::State::kClean:
      return "clean";
    case InspectedSegment::State::kOpen:
      return "open";
    case InspectedSegment::State::kSealed:
      return "sealed";
    case InspectedSegment::State::kForeign:
      return "of another store";
  }
  return "unknown";
}

const char* Name(InspectedRecord::State state) {
  switch (state) {
    case InspectedRecord::State::kLive:
      return "live";
    case InspectedRecord::State::kErased:
      return "erased";
    case InspectedRecord::State::kTorn:
      return "torn";
    case InspectedRecord::State::kDamaged:
      return "damaged";
  }
  return "unknown";
}

const char* Name(Lifetime lifetime) {
  switch (lifetime) {
    case Lifetime::kImmutable:
      return "immutable";
    case Lifetime::kHot:
      return "hot";
    case Lifetime::kCold:
      return "cold";
  }
  return "unknown";
}

// Of its records; "mixed" in stores of few segments.
std::string LifetimeOf(const InspectedSegment& segment) {
  if (segment.records.empty()) return "-";
  const Lifetime first = segment.records.front().meta.lifetime;
  for (const InspectedRecord& record : segment.records) {
    if (record.meta.lifetime != first) return "mixed";
  }
  return Name(first);
}

std::string Hex(const nvme::StoreId& id) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(id.data()), id.size()});
}

void PutRecord(const InspectedRecord& record, JsonWriter& json) {
  json.BeginObject()
      .Field("key", record.meta.key.ToHex())
      .Field("state", Name(record.state))
      .Field("offset", record.offset)
      .Field("header_bytes", record.header_bytes)
      .Field("payload_bytes", record.meta.payload_bytes)
      .Field("decoded_bytes", record.meta.decoded_bytes)
      .Field("sequence", record.sequence)
      .Field("kind", KindName(record.meta.kind))
      .Field("lifetime", Name(record.meta.lifetime))
      .Field("pinned", (record.meta.flags & kRecordPinned) != 0)
      .EndObject();
}

void PutSegment(const InspectedSegment& segment, bool records, JsonWriter& json) {
  json.BeginObject()
      .Field("id", segment.id)
      .Field("file", nvme::SegmentName(segment.id))
      .Field("state", Name(segment.state))
      .Field("generation", segment.generation)
      .Field("bytes", segment.bytes)
      .Field("lifetime", LifetimeOf(segment))
      .Field("live_bytes", segment.live_bytes)
      .Field("dead_bytes", segment.dead_bytes)
      .Field("live_records", segment.live_records)
      .Field("dead_records", segment.dead_records)
      .Field("pinned_records", segment.pinned_records)
      .Field("footer", segment.footer)
      .Field("row", segment.row);
  if (records) {
    json.Key("records").BeginArray();
    for (const InspectedRecord& record : segment.records) PutRecord(record, json);
    json.EndArray();
  }
  json.EndObject();
}

void PutSuperblock(const nvme::SuperblockCopy& copy, JsonWriter& json) {
  json.BeginObject().Field("file", copy.file).Field("ok", copy.superblock.ok());
  if (copy.superblock.ok()) {
    json.Field("epoch", copy.superblock->epoch)
        .Field("closed", copy.superblock->closed)
        .Field("segment_bytes", copy.superblock->segment_bytes)
        .Field("budget_bytes", copy.superblock->budget_bytes)
        .Field("budget_time_us", copy.superblock->budget_time_us);
  }
  json.EndObject();
}

void PrintJson(const StoreReport& report, bool records) {
  JsonWriter json(2);
  json.BeginObject().Field("store_id", Hex(report.store_id));
  json.Key("superblocks").BeginArray();
  for (const nvme::SuperblockCopy& copy : report.superblocks) PutSuperblock(copy, json);
  json.EndArray();
  json.Key("index")
      .BeginObject()
      .Field("complete", report.index_complete)
      .Field("rows", report.rows)
      .Field("stale_rows", report.stale_rows)
      .Field("notes", report.notes)
      .EndObject();
  json.Key("segments").BeginArray();
  for (const InspectedSegment& segment : report.segments) PutSegment(segment, records, json);
  json.EndArray();
  json.Key("problems").BeginArray();
  for (const nvme::Problem& problem : report.problems) {
    json.BeginObject()
        .Field("file", problem.file)
        .Field("offset", problem.offset)
        .Field("what", problem.what)
        .EndObject();
  }
  json.EndArray().EndObject();
  std::printf("%s\n", json.text().c_str());
}

void PrintSegments(const StoreReport& report) {
  using enum Table::Align;
  Table table({{"SEGMENT", kRight},
               {"GENERATION", kRight},
               {"STATE"},
               {"LIFETIME"},
               {"BYTES", kRight},
               {"LIVE", kRight},
               {"DEAD", kRight},
               {"RECORDS", kRight},
               {"PINNED", kRight},
               {"FOOTER"},
               {"ROW"}});
  for (const InspectedSegment& segment : report.segments) {
    table.AddRow({absl::StrCat(segment.id), absl::StrCat(segment.generation), Name(segment.state),
                  LifetimeOf(segment), HumanBytes(segment.bytes), HumanBytes(segment.live_bytes),
                  HumanBytes(segment.dead_bytes), HumanCount(segment.live_records),
                  HumanCount(segment.pinned_records), segment.footer ? "yes" : "-",
                  segment.row ? "yes" : "-"});
  }
  std::printf("%s", table.Render().c_str());
}

void PrintRecords(const StoreReport& report) {
  using enum Table::Align;
  Table table({{"SEGMENT", kRight},
               {"OFFSET", kRight},
               {"BYTES", kRight},
               {"STATE"},
               {"KIND"},
               {"LIFETIME"},
               {"KEY"}});
  for (const InspectedSegment& segment : report.segments) {
    for (const InspectedRecord& record : segment.records) {
      table.AddRow({absl::StrCat(segment.id), absl::StrCat(record.offset),
                    absl::StrCat(record.meta.payload_bytes), Name(record.state),
                    KindName(record.meta.kind), Name(record.meta.lifetime),
                    record.meta.key.ToHex()});
    }
  }
  std::printf("\n%s", table.Render().c_str());
}

void PrintText(const StoreReport& report, bool records) {
  std::printf("store %s\n", Hex(report.store_id).c_str());
  for (const nvme::SuperblockCopy& copy : report.superblocks) {
    if (!copy.superblock.ok()) continue;
    std::printf("%s: epoch %s, %s\n", copy.file.c_str(), HumanCount(copy.superblock->epoch).c_str(),
                copy.superblock->closed ? "closed in order" : "in use, or killed");
  }
  std::printf("index: %s rows (%s stale), %s notes%s\n\n", HumanCount(report.rows).c_str(),
              HumanCount(report.stale_rows).c_str(), HumanCount(report.notes).c_str(),
              report.index_complete ? "" : "; not complete: the next start reads the segments");
  PrintSegments(report);
  if (records) PrintRecords(report);
  uint64_t live = 0, live_bytes = 0, dead_bytes = 0;
  for (const InspectedSegment& segment : report.segments) {
    live += segment.live_records;
    live_bytes += segment.live_bytes;
    dead_bytes += segment.dead_bytes;
  }
  std::printf("\n%s live records (%s), %s dead, %s problems\n", HumanCount(live).c_str(),
              HumanBytes(live_bytes).c_str(), HumanBytes(dead_bytes).c_str(),
              HumanCount(report.problems.size()).c_str());
  for (const nvme::Problem& problem : report.problems) {
    std::printf("problem %s at %llu: %s\n", problem.file.c_str(),
                static_cast<unsigned long long>(problem.offset), problem.what.c_str());
  }
}

}  // namespace

int RunStoreInspect(const GlobalOptions& options, const StoreInspectOptions& inspect) {
  absl::StatusOr<StoreReport> report = absl::UnknownError("not read");
  {
    Progress progress;
    report = nvme::InspectStore(
        nvme::System::Real(), inspect.directory, [&](uint64_t done, uint64_t total) {
          progress.Show(absl::StrCat("checking: ", HumanBytes(done), " of ", HumanBytes(total)));
        });
  }
  if (absl::IsUnavailable(report.status())) {  // of the disk: no daemon was asked
    report = absl::InternalError(report.status().message());
  }
  if (!report.ok()) return Fail(options, "store inspect", report.status());
  if (options.json) {
    PrintJson(*report, inspect.records);
  } else {
    PrintText(*report, inspect.records);
  }
  return report->problems.empty() ? kOk : kCorruptionFound;
}

}  // namespace terrace::cli
