// terrace mrc: hit rate against size of each tier, and what a GiB more or less is worth.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/format.h"
#include "client/json_writer.h"

namespace terrace::cli {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
// A share that was counted so often is right within three points, two times in three.
constexpr uint64_t kEnoughSamples = 300;
constexpr int kColumns = 64;
constexpr int kRows = 12;
constexpr int kOctavesBelow = 6;  // shown, below the tier's size
constexpr int kOctavesAbove = 2;

struct TierCurve {
  std::string tier;
  uint64_t capacity_bytes = 0;
  MissRatioCurveReply reply;

  bool enough() const { return reply.sampled >= kEnoughSamples; }
  // Between two points: along the line.
  double HitRate(uint64_t bytes, bool by_bytes = false) const;
  // Of a change of size: points of hit rate, and saved seconds per hour; 0 when unknown.
  double GainedRate(int64_t change_bytes) const;
  double SavedSecondsPerHour(int64_t change_bytes) const {
    return GainedRate(change_bytes) * reply.accesses_per_hour * reply.hit_saves_us / 1e6;
  }
};

double TierCurve::HitRate(uint64_t bytes, bool by_bytes) const {
  const auto& points = reply.points;
  const auto hit = [&](const MissRatioPoint& point) {
    return 1.0 - (by_bytes ? point.by_bytes : point.by_accesses);
  };
  if (points.empty()) return 0;
  const auto above = std::lower_bound(
      points.begin(), points.end(), bytes,
      [](const MissRatioPoint& point, uint64_t size) { return point.bytes < size; });
  if (above == points.end()) return hit(points.back());
  if (above == points.begin()) return hit(*above);
  const auto below = above - 1;
  const double share =
      static_cast<double>(bytes - below->bytes) / static_cast<double>(above->bytes - below->bytes);
  return hit(*below) + share * (hit(*above) - hit(*below));
}

double TierCurve::GainedRate(int64_t change_bytes) const {
  return HitRate(capacity_bytes + static_cast<uint64_t>(change_bytes)) - HitRate(capacity_bytes);
}

// The size at a place of the axis, whose octaves are equally wide.
uint64_t SizeAt(const TierCurve& curve, double share) {
  const double octaves = -kOctavesBelow + share * (kOctavesBelow + kOctavesAbove);
  return static_cast<uint64_t>(static_cast<double>(curve.capacity_bytes) * std::exp2(octaves));
}

// One character cell a column, two heights a row; the tier's own size is marked by a line.
void Draw(const TierCurve& curve) {
  const double most = std::max(0.01, curve.HitRate(SizeAt(curve, 1)));
  const int mark = kColumns * kOctavesBelow / (kOctavesBelow + kOctavesAbove);
  for (int row = kRows - 1; row >= 0; --row) {
    const double top = most * (row + 1) / kRows;
    std::printf("  %5.1f%% |", 100 * top);
    for (int column = 0; column < kColumns; ++column) {
      const double rate =
          curve.HitRate(SizeAt(curve, static_cast<double>(column) / (kColumns - 1)));
      const double halves = rate / most * 2 * kRows - 2 * row;
      const char* cell = column == mark ? ":" : " ";
      if (halves >= 1.5) {
        cell = column == mark ? "|" : "#";
      } else if (halves >= 0.5) {
        cell = column == mark ? "|" : "_";
      }
      std::printf("%s", cell);
    }
    std::printf("\n");
  }
  std::string ticks(kColumns, '-'), sizes(kColumns + 12, ' ');
  for (int octave = 0; octave <= kOctavesBelow + kOctavesAbove; octave += 2) {
    const int column = std::min(kColumns - 1, kColumns * octave / (kOctavesBelow + kOctavesAbove));
    ticks[column] = octave == kOctavesBelow ? '^' : '+';
    const uint64_t size =
        SizeAt(curve, static_cast<double>(octave) / (kOctavesBelow + kOctavesAbove));
    const std::string text = HumanBytes(size);
    sizes.replace(column, text.size(), text);
  }
  std::printf("   hits  +%s\n          %s\n", ticks.c_str(), sizes.c_str());
}

std::string Points(double rate) { return absl::StrFormat("%+.2f points", 100 * rate); }

// "+1 GiB: +1.20 points of hit rate, 35 s an hour"
void SayWorth(const TierCurve& curve, int64_t change_bytes) {
  const char* sign = change_bytes > 0 ? "+1 GiB" : "-1 GiB";
  if (change_bytes < 0 && curve.capacity_bytes <= kGiB) {
    std::printf("  %s: it has no more than %s\n", sign, HumanBytes(curve.capacity_bytes).c_str());
    return;
  }
  std::printf("  %s: %s of hit rate", sign, Points(curve.GainedRate(change_bytes)).c_str());
  const double seconds = std::abs(curve.SavedSecondsPerHour(change_bytes));
  if (curve.reply.hit_saves_us > 0) {
    std::printf(", %s %.1f s of waiting an hour", change_bytes > 0 ? "saves" : "costs", seconds);
  }
  std::printf("\n");
}

void PrintTable(const TierCurve& curve) {
  using Align = Table::Align;
  Table table(
      {{"SIZE", Align::kRight}, {"HIT RATE", Align::kRight}, {"BYTES HIT", Align::kRight}, {""}});
  for (int octave = -kOctavesBelow; octave <= kOctavesAbove; ++octave) {
    const uint64_t size = SizeAt(
        curve, static_cast<double>(octave + kOctavesBelow) / (kOctavesBelow + kOctavesAbove));
    table.AddRow({HumanBytes(size), absl::StrFormat("%.1f%%", 100 * curve.HitRate(size)),
                  absl::StrFormat("%.1f%%", 100 * curve.HitRate(size, true)),
                  octave == 0 ? "<- now" : ""});
  }
  std::printf("\n%s", table.Render(2).c_str());
}

void Print(const TierCurve& curve) {
  std::printf("%s  %s\n", curve.tier == "host" ? "HOST" : "NVME, which holds what host memory does",
              HumanBytes(curve.capacity_bytes).c_str());
  const MissRatioCurveReply& reply = curve.reply;
  if (!curve.enough()) {
    std::printf(
        "  Too few samples: %s accesses looked at, %s are needed to say anything. Come back when "
        "engines have asked for more.\n\n",
        HumanCount(reply.sampled).c_str(), HumanCount(kEnoughSamples).c_str());
    return;
  }
  Draw(curve);
  PrintTable(curve);
  std::printf("\n  Of %s accesses, %s were looked at; %s an hour.\n",
              HumanCount(reply.accesses).c_str(), HumanCount(reply.sampled).c_str(),
              HumanCount(static_cast<uint64_t>(std::llround(reply.accesses_per_hour))).c_str());
  if (reply.hit_saves_us > 0) {
    std::printf("  A hit saves %.2f ms on average.\n", reply.hit_saves_us / 1000);
  } else {
    std::printf("  What a hit saves is not known: engines report no costs.\n");
  }
  SayWorth(curve, static_cast<int64_t>(kGiB));
  SayWorth(curve, -static_cast<int64_t>(kGiB));
  std::printf("\n");
}

void WriteWorth(JsonWriter& json, std::string_view name, const TierCurve& curve,
                int64_t change_bytes) {
  json.Key(name);
  const bool possible = change_bytes > 0 || curve.capacity_bytes > kGiB;
  if (!possible || !curve.enough()) {
    json.Null();
    return;
  }
  json.BeginObject().Field("hit_rate", curve.GainedRate(change_bytes));
  json.Key("saved_s_per_hour");
  if (curve.reply.hit_saves_us > 0) {
    json.Double(curve.SavedSecondsPerHour(change_bytes));
  } else {
    json.Null();
  }
  json.EndObject();
}

void WriteJson(const std::vector<TierCurve>& curves) {
  JsonWriter json(2);
  json.BeginObject().Key("tiers").BeginArray();
  for (const TierCurve& curve : curves) {
    const MissRatioCurveReply& reply = curve.reply;
    json.BeginObject()
        .Field("tier", curve.tier)
        .Field("capacity_bytes", curve.capacity_bytes)
        .Field("enough_samples", curve.enough())
        .Field("accesses", reply.accesses)
        .Field("sampled", reply.sampled)
        .Field("accesses_per_hour", reply.accesses_per_hour);
    json.Key("hit_saves_us");
    if (reply.hit_saves_us > 0) {
      json.Double(reply.hit_saves_us);
    } else {
      json.Null();
    }
    json.Field("hit_rate", curve.HitRate(curve.capacity_bytes));
    WriteWorth(json, "plus_1_gib", curve, static_cast<int64_t>(kGiB));
    WriteWorth(json, "minus_1_gib", curve, -static_cast<int64_t>(kGiB));
    json.Key("points").BeginArray();
    for (const MissRatioPoint& point : reply.points) {
      json.BeginObject()
          .Field("bytes", point.bytes)
          .Field("hit_rate", 1.0 - point.by_accesses)
          .Field("byte_hit_rate", 1.0 - point.by_bytes)
          .EndObject();
    }
    json.EndArray().EndObject();
  }
  json.EndArray().EndObject();
  std::printf("%s\n", json.text().c_str());
}

}  // namespace

int RunMrc(const GlobalOptions& options) {
  int exit_code = kOk;
  const auto connection = Connect(options, exit_code);
  if (connection == nullptr) return exit_code;
  std::vector<TierCurve> curves;
  std::vector<std::string> tiers = {"host"};
  for (size_t i = 0; i < tiers.size(); ++i) {
    auto reply = connection->MissRatioCurve({tiers[i], ""});
    if (!reply.ok()) return Fail(options, "mrc", reply.status());
    TierCurve curve{tiers[i], 0, *std::move(reply)};
    for (const TierCapacity& tier : curve.reply.capacities) {
      if (tier.tier == tiers[i]) curve.capacity_bytes = tier.bytes;
      if (i == 0 && tier.tier != tiers[0]) tiers.push_back(tier.tier);
    }
    curves.push_back(std::move(curve));
  }
  if (options.json) {
    WriteJson(curves);
    return kOk;
  }
  for (const TierCurve& curve : curves) Print(curve);
  return kOk;
}

}  // namespace terrace::cli
