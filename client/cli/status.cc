// terrace status
#include <cstdio>

#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/status_json.h"

namespace terrace::cli {
namespace {

using Align = Table::Align;

void PrintHead(const StatusReply& status) {
  std::printf("terraced %s  pid %d  up %s  %s objects  %s leases  %s reservations\n",
              status.version.c_str(), status.pid, HumanDuration(status.uptime_ms).c_str(),
              HumanCount(status.objects).c_str(), HumanCount(status.leases).c_str(),
              HumanCount(status.reservations).c_str());
  std::printf("socket %s  state %s  verify %s\n", status.socket_path.c_str(),
              status.state_dir.c_str(),
              status.verify == VerifyMode::kAlways ? "always" : "crossing");
}

void PrintTiers(const StatusReply& status) {
  Table table({{"TIER"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"FULL"},
               {"", Align::kRight},
               {"OBJECTS", Align::kRight},
               {"POPULATED", Align::kRight},
               {"HUGE PAGES", Align::kRight},
               {"DETAIL"}});
  for (const TierStatus& tier : status.tiers) {
    const bool memory = tier.populated_bytes > 0;
    table.AddRow({tier.name, HumanBytes(tier.used_bytes), HumanBytes(tier.capacity_bytes),
                  Bar(tier.used_bytes, tier.capacity_bytes, 16),
                  Percent(tier.used_bytes, tier.capacity_bytes), HumanCount(tier.objects),
                  memory ? HumanBytes(tier.populated_bytes) : "-",
                  memory ? Percent(tier.huge_page_bytes, tier.populated_bytes) : "-", tier.detail});
  }
  std::printf("\n%s", table.Render().c_str());
}

void PrintHitRates(const StatusReply& status) {
  Table table(
      {{"HIT RATE"}, {"", Align::kRight}, {"FOUND", Align::kRight}, {"ASKED FOR", Align::kRight}});
  for (const HitRate& rate : HitRates(status)) {
    table.AddRow(
        {rate.name, Percent(rate.hits, rate.asked), HumanCount(rate.hits), HumanCount(rate.asked)});
  }
  std::printf("\n%s", table.Render().c_str());
}

void PrintSessions(const StatusReply& status) {
  Table table({{"SESSION", Align::kRight},
               {"CLIENT"},
               {"TENANT"},
               {"PID", Align::kRight},
               {"UID", Align::kRight},
               {"LEASES", Align::kRight},
               {"RESERVATIONS", Align::kRight},
               {"AGE", Align::kRight}});
  for (const SessionStatus& session : status.sessions) {
    table.AddRow({std::to_string(session.id), session.client_name, session.tenant,
                  std::to_string(session.pid), std::to_string(session.uid),
                  HumanCount(session.leases), HumanCount(session.reservations),
                  HumanDuration(session.age_ms)});
  }
  if (!table.empty()) std::printf("\n%s", table.Render().c_str());
}

void PrintCounters(const StatusReply& status) {
  Table table({{"COUNTER"}, {"SINCE START", Align::kRight}});
  for (const auto& [name, value] : status.counters) {
    if (value != 0) table.AddRow({name, CounterValue(name, value)});
  }
  if (!table.empty()) std::printf("\n%s", table.Render().c_str());
}

}  // namespace

int RunStatus(const GlobalOptions& options) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  const auto status = connection->Status();
  if (!status.ok()) return Fail(options, "status", status.status());
  if (options.json) {
    std::printf("%s\n", StatusJson(*status, 2).c_str());
    return kOk;
  }
  PrintHead(*status);
  PrintTiers(*status);
  PrintHitRates(*status);
  PrintSessions(*status);
  PrintCounters(*status);
  return kOk;
}

}  // namespace terrace::cli
