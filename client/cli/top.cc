// terrace top: the same figures as status, as rates from the differences of two samples.
#include <poll.h>
#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/status_json.h"

namespace terrace::cli {
namespace {

using Align = Table::Align;
using Clock = std::chrono::steady_clock;

volatile sig_atomic_t interrupted = 0;
void OnInterrupt(int) { interrupted = 1; }

// Reads single keys without echo while it lives, and puts the terminal back. Does nothing when
// stdin is not a terminal.
class KeyMode {
 public:
  KeyMode() {
    if (tcgetattr(STDIN_FILENO, &saved_) != 0) return;
    termios raw = saved_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    active_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  ~KeyMode() {
    if (active_) tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
  }
  KeyMode(const KeyMode&) = delete;
  KeyMode& operator=(const KeyMode&) = delete;
  bool active() const { return active_; }

 private:
  termios saved_{};
  bool active_ = false;
};

// Waits out the interval; true when the user asked to stop (q, Ctrl-C).
bool WaitOrQuit(const KeyMode& keys, double seconds) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(seconds));
  while (interrupted == 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd input{.fd = keys.active() ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0};
    if (poll(&input, 1, static_cast<int>(left)) <= 0 || (input.revents & POLLIN) == 0) continue;
    char key = 0;
    if (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q') return true;
  }
  return true;
}

struct Rate {
  std::string name;
  double per_second = 0;
  uint64_t total = 0;
};

std::vector<Rate> Rates(const StatusReply& before, const StatusReply& now, double seconds) {
  std::vector<Rate> rates;
  for (const auto& [name, value] : now.counters) {
    Rate rate{name, 0, value};
    for (const auto& [old_name, old_value] : before.counters) {
      // A restarted daemon counts from zero again: that is no rate.
      if (old_name == name && old_value <= value && seconds > 0) {
        rate.per_second = static_cast<double>(value - old_value) / seconds;
      }
    }
    rates.push_back(std::move(rate));
  }
  return rates;
}

std::string RateText(const Rate& rate) {
  if (rate.name.ends_with("bytes")) {
    return absl::StrCat(HumanBytes(static_cast<uint64_t>(rate.per_second)), "/s");
  }
  return absl::StrFormat("%.1f/s", rate.per_second);
}

// Hit rates within the interval, not since the start.
StatusReply Difference(const StatusReply& before, const StatusReply& now) {
  StatusReply difference;
  for (const auto& [name, value] : now.counters) {
    uint64_t base = 0;
    for (const auto& [old_name, old_value] : before.counters) {
      if (old_name == name && old_value <= value) base = old_value;
    }
    difference.counters.emplace_back(name, value - base);
  }
  return difference;
}

std::string Screen(const StatusReply& before, const StatusReply& now, double seconds) {
  std::string out = absl::StrFormat(
      "terraced %s  pid %d  up %s  %s objects  %s leases  %s reservations  %d sessions\n\n",
      now.version, now.pid, HumanDuration(now.uptime_ms), HumanCount(now.objects),
      HumanCount(now.leases), HumanCount(now.reservations), now.sessions.size());
  Table tiers({{"TIER"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"FULL"},
               {"", Align::kRight},
               {"OBJECTS", Align::kRight}});
  for (const TierStatus& tier : now.tiers) {
    tiers.AddRow({tier.name, HumanBytes(tier.used_bytes), HumanBytes(tier.capacity_bytes),
                  Bar(tier.used_bytes, tier.capacity_bytes, 24),
                  Percent(tier.used_bytes, tier.capacity_bytes), HumanCount(tier.objects)});
  }
  absl::StrAppend(&out, tiers.Render(), "\n");
  Table hits({{"HIT RATE"}, {"NOW", Align::kRight}, {"SINCE START", Align::kRight}});
  const std::vector<HitRate> recent = HitRates(Difference(before, now));
  const std::vector<HitRate> overall = HitRates(now);
  for (size_t i = 0; i < overall.size(); ++i) {
    hits.AddRow({overall[i].name, Percent(recent[i].hits, recent[i].asked),
                 Percent(overall[i].hits, overall[i].asked)});
  }
  absl::StrAppend(&out, hits.Render(), "\n");
  Table rates({{"COUNTER"}, {"RATE", Align::kRight}, {"SINCE START", Align::kRight}});
  for (const Rate& rate : Rates(before, now, seconds)) {
    if (rate.total != 0) {
      rates.AddRow({rate.name, RateText(rate), CounterValue(rate.name, rate.total)});
    }
  }
  if (!rates.empty()) absl::StrAppend(&out, rates.Render());
  return out;
}

std::string SampleJson(const StatusReply& before, const StatusReply& now, double seconds) {
  JsonWriter json;
  json.BeginObject().Field("interval_s", seconds);
  WriteStatusFields(now, json);
  json.Key("rates").BeginObject();
  for (const Rate& rate : Rates(before, now, seconds)) json.Field(rate.name, rate.per_second);
  json.EndObject().EndObject();
  return json.text() + "\n";
}

}  // namespace

int RunTop(const GlobalOptions& options, const TopOptions& top) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  struct sigaction action {};
  action.sa_handler = OnInterrupt;  // without SA_RESTART: poll returns at once
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  const KeyMode keys;
  const bool live = isatty(STDOUT_FILENO) == 1 && !options.json;

  auto before = connection->Status();
  if (!before.ok()) return Fail(options, "top", before.status());
  auto sampled_at = Clock::now();
  for (uint32_t sample = 0; top.count == 0 || sample < top.count; ++sample) {
    if (WaitOrQuit(keys, top.interval_s)) break;
    auto now = connection->Status();
    if (!now.ok()) return Fail(options, "top", now.status());
    const auto at = Clock::now();
    const double seconds = std::chrono::duration<double>(at - sampled_at).count();
    if (options.json) {
      std::fputs(SampleJson(*before, *now, seconds).c_str(), stdout);
    } else {
      if (live) std::fputs("\033[H\033[2J", stdout);  // home, clear
      std::fputs(Screen(*before, *now, seconds).c_str(), stdout);
      if (live) std::fputs("\nq or Ctrl-C ends\n", stdout);
    }
    std::fflush(stdout);
    before = std::move(now);
    sampled_at = at;
  }
  return kOk;
}

}  // namespace terrace::cli
