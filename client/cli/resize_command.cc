// terrace resize: changes a size in a running daemon, and waits until it is so.
#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/json_writer.h"
#include "config/size.h"

namespace terrace::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPollEvery{20};
// What leases hold may take as long as the longest lease: told, rather than waited for.
constexpr std::chrono::seconds kLongestStall{10};

uint64_t ToGo(const ResizeReply& reply) {
  return reply.current_bytes > reply.target_bytes ? reply.current_bytes - reply.target_bytes : 0;
}

std::string Held(const ResizeReply& reply) {
  if (reply.held_by_leases_bytes == 0) return "";
  return absl::StrCat(", ", HumanBytes(reply.held_by_leases_bytes), " held by leases");
}

int Print(const GlobalOptions& options, const ResizeOptions& resize, const ResizeReply& reply,
          uint64_t elapsed_ms) {
  if (options.json) {
    JsonWriter json;
    json.BeginObject()
        .Field("tier", resize.tier)
        .Field("tenant", resize.tenant)
        .Field("target_bytes", reply.target_bytes)
        .Field("current_bytes", reply.current_bytes)
        .Field("done", reply.done)
        .Field("held_by_leases_bytes", reply.held_by_leases_bytes)
        .Field("elapsed_ms", elapsed_ms)
        .EndObject();
    std::printf("%s\n", json.text().c_str());
  } else if (reply.done) {
    std::printf("%s is %s now\n", resize.tier.c_str(), HumanBytes(reply.target_bytes).c_str());
  } else {
    std::printf("%s is on its way to %s: %s to go%s\n", resize.tier.c_str(),
                HumanBytes(reply.target_bytes).c_str(), HumanBytes(ToGo(reply)).c_str(),
                Held(reply).c_str());
  }
  if (reply.done || !resize.wait) return kOk;
  std::fprintf(stderr, "terrace: resize: no progress for %lld s; it goes on by itself\n",
               static_cast<long long>(kLongestStall.count()));
  return kError;
}

}  // namespace

int RunResize(const GlobalOptions& options, const ResizeOptions& resize) {
  const absl::StatusOr<Size> size = ParseSize(resize.size);
  if (!size.ok() || (size->bytes == 0 && !size->is_percent())) {
    Fail(options, "resize",
         size.ok() ? absl::InvalidArgumentError("a size of 0: expected at least 4MiB")
                   : size.status());
    return kUsage;
  }
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  ResizeRequest request{resize.tier, resize.tenant, size->is_percent() ? 0 : size->bytes,
                        size->percent};
  const auto start = Clock::now();
  auto reply = connection->Resize(request);
  if (!reply.ok()) return Fail(options, "resize", reply.status());
  request.bytes = request.percent = 0;  // from now on only asks
  uint64_t least_to_go = ToGo(*reply);
  auto progressed = start;
  {
    Progress progress;
    while (resize.wait && !reply->done && Clock::now() - progressed < kLongestStall) {
      progress.Show(absl::StrCat("resizing ", resize.tier, ": ", HumanBytes(ToGo(*reply)), " to go",
                                 Held(*reply)));
      std::this_thread::sleep_for(kPollEvery);
      reply = connection->Resize(request);
      if (!reply.ok()) return Fail(options, "resize", reply.status());
      if (ToGo(*reply) < least_to_go) {
        least_to_go = ToGo(*reply);
        progressed = Clock::now();
      }
    }
  }
  const auto elapsed = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
  return Print(options, resize, *reply, static_cast<uint64_t>(elapsed.count()));
}

}  // namespace terrace::cli
