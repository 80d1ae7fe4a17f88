// terrace flush, verify: the long-running ones, with progress on stderr when it is a terminal.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/json_writer.h"

namespace terrace::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kShortestWait{50};
constexpr std::chrono::microseconds kLongestWait{20000};

uint64_t ElapsedMs(Clock::time_point start) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count());
}

// Every object counted in `total`, what was skipped too.
void Add(const VerifyReply& step, VerifyReply& total) {
  total.checked += step.checked;
  total.corrupt += step.corrupt;
  total.skipped += step.skipped;
  total.bytes += step.bytes;
  total.corrupt_keys.insert(total.corrupt_keys.end(), step.corrupt_keys.begin(),
                            step.corrupt_keys.end());
}

void PrintVerified(const GlobalOptions& options, const VerifyReply& total, uint64_t elapsed_ms) {
  if (options.json) {
    JsonWriter json(2);
    json.BeginObject()
        .Field("checked", total.checked)
        .Field("corrupt", total.corrupt)
        .Field("skipped", total.skipped)
        .Field("bytes", total.bytes)
        .Field("elapsed_ms", elapsed_ms);
    json.Key("corrupt_keys").BeginArray();
    for (const ObjectKey& key : total.corrupt_keys) json.String(key.ToHex());
    json.EndArray().EndObject();
    std::printf("%s\n", json.text().c_str());
    return;
  }
  std::printf("%s objects checked (%s), %s corrupt, %s skipped, in %s\n",
              HumanCount(total.checked).c_str(), HumanBytes(total.bytes).c_str(),
              HumanCount(total.corrupt).c_str(), HumanCount(total.skipped).c_str(),
              HumanDuration(elapsed_ms).c_str());
  for (const ObjectKey& key : total.corrupt_keys) {
    std::printf("corrupt %s\n", key.ToHex().c_str());
  }
}

}  // namespace

int RunFlush(const GlobalOptions& options, double timeout_s) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  const auto start = Clock::now();
  FlushReply reply;
  {
    Progress progress;
    while (true) {
      auto flushed = connection->Flush();
      if (!flushed.ok()) return Fail(options, "flush", flushed.status());
      reply = *flushed;
      if (reply.pending_objects == 0) break;
      if (static_cast<double>(ElapsedMs(start)) >= timeout_s * 1000) break;
      progress.Show(absl::StrCat("flushing: ", HumanCount(reply.pending_objects), " objects, ",
                                 HumanBytes(reply.pending_bytes), " to go"));
      std::this_thread::sleep_for(kLongestWait);
    }
  }
  const bool durable = reply.pending_objects == 0;
  if (options.json) {
    JsonWriter json;
    json.BeginObject()
        .Field("pending_objects", reply.pending_objects)
        .Field("pending_bytes", reply.pending_bytes)
        .Field("elapsed_ms", ElapsedMs(start))
        .EndObject();
    std::printf("%s\n", json.text().c_str());
  } else if (durable) {
    std::printf("flushed in %s: everything committed before is durable\n",
                HumanDuration(ElapsedMs(start)).c_str());
  }
  if (durable) return kOk;
  std::fprintf(stderr, "terrace: flush: timed out with %s objects (%s) not yet durable\n",
               HumanCount(reply.pending_objects).c_str(), HumanBytes(reply.pending_bytes).c_str());
  return kError;
}

int RunVerify(const GlobalOptions& options) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  const auto status = connection->Status();
  if (!status.ok()) return Fail(options, "verify", status.status());
  const auto start = Clock::now();
  VerifyReply total;
  {
    Progress progress;
    uint64_t cursor = 0;
    auto wait = kShortestWait;
    do {
      const auto step = connection->Verify(cursor);
      if (!step.ok()) return Fail(options, "verify", step.status());
      Add(*step, total);
      // A step that checked nothing is waiting for the disk. Objects take from microseconds to
      // seconds to read, so the wait grows until the next one is done.
      if (step->checked == 0 && step->next_cursor == cursor) {
        std::this_thread::sleep_for(wait);
        wait = std::min(wait * 2, kLongestWait);
      } else {
        wait = kShortestWait;
      }
      cursor = step->next_cursor;
      progress.Show(absl::StrCat("verifying: ", HumanCount(total.checked + total.skipped), " of ",
                                 HumanCount(status->objects), " objects, ", HumanBytes(total.bytes),
                                 ", ", HumanCount(total.corrupt), " corrupt"));
    } while (cursor != 0);
  }
  PrintVerified(options, total, ElapsedMs(start));
  return total.corrupt == 0 ? kOk : kCorruptionFound;
}

}  // namespace terrace::cli
