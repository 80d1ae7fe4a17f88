#include "client/cli/replay_rows.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/format.h"
#include "client/cli/python.h"
#include "client/json_writer.h"
#include "config/text.h"

namespace terrace::cli {
namespace {

using enum Table::Align;

double Ratio(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string_view Unit(const ReplayTable& table) { return table.in_tokens ? "tokens" : "objects"; }

void WriteTrace(JsonWriter& json, const ReplayTable& table) {
  json.Field("trace", table.trace)
      .Field("format", table.format)
      .Field("semantics", table.semantics)
      .Field("window", table.window)
      .Field("capacity_unit", Unit(table));
}

void WriteRow(JsonWriter& json, const ReplayTable& table, const ReplayRow& row) {
  json.Field("policy", row.policy)
      .Field("capacity", row.capacity)
      .Field("requests", row.requests)
      .Field("accesses", row.accesses)
      .Field("hits", row.hits)
      .Field("hit_rate", row.rates().objects);
  if (table.has_tokens) {
    json.Field("tokens", row.tokens)
        .Field("token_hits", row.token_hits)
        .Field("token_hit_rate", row.rates().size);
  }
  json.Field("evictions", row.evictions).Field("bypassed", row.bypassed);
  for (const auto& [name, rates] : {std::pair{"lru", row.lru}, std::pair{"min", row.min}}) {
    if (!rates) continue;
    json.Field(absl::StrCat(name, "_hit_rate"), rates->objects);
    if (table.has_tokens) json.Field(absl::StrCat(name, "_token_hit_rate"), rates->size);
  }
  if (row.lru && row.min) {
    const std::optional<double> gap = GapClosed(table, row);
    json.Key("gap_closed");
    gap ? json.Double(*gap) : json.Null();
  }
  json.Field("seconds", row.seconds)
      .Field("accesses_per_s",
             row.seconds > 0 ? static_cast<double>(row.accesses) / row.seconds : 0);
}

std::string Rate(double rate) { return absl::StrFormat("%.2f%%", 100 * rate); }

std::string GapText(const ReplayTable& table, const ReplayRow& row) {
  const std::optional<double> gap = GapClosed(table, row);
  return gap ? absl::StrFormat("%.1f%%", 100 * *gap) : "-";
}

// Policies with everything about them.
std::string OneSize(const ReplayTable& table) {
  std::vector<Table::Column> columns = {{"POLICY"}, {"HITS", kRight}};
  if (table.has_tokens) columns.push_back({"TOKEN HITS", kRight});
  const bool gaps = table.rows.front().lru && table.rows.front().min;
  if (gaps) columns.push_back({"GAP CLOSED", kRight});
  columns.push_back({"EVICTIONS", kRight});
  columns.push_back({"M ACCESSES/S", kRight});
  Table text(std::move(columns));
  for (const ReplayRow& row : table.rows) {
    std::vector<std::string> cells = {row.policy, Rate(row.rates().objects)};
    if (table.has_tokens) cells.push_back(Rate(row.rates().size));
    if (gaps) cells.push_back(GapText(table, row));
    cells.push_back(HumanCount(row.evictions));
    const double speed = row.seconds > 0 ? static_cast<double>(row.accesses) / row.seconds : 0;
    cells.push_back(absl::StrFormat("%.2f", speed / 1e6));
    text.AddRow(std::move(cells));
  }
  return text.Render();
}

std::string ManySizes(const ReplayTable& table, const std::vector<uint64_t>& capacities) {
  std::vector<Table::Column> columns = {{"POLICY"}};
  const bool gaps = table.rows.front().lru && table.rows.front().min;
  for (uint64_t capacity : capacities) {
    columns.push_back({HumanCount(capacity), kRight});
    if (gaps) columns.push_back({"GAP", kRight});
  }
  Table text(std::move(columns));
  const size_t policies = table.rows.size() / capacities.size();
  for (size_t p = 0; p < policies; ++p) {
    std::vector<std::string> cells = {table.rows[p].policy};
    for (size_t c = 0; c < capacities.size(); ++c) {
      const ReplayRow& row = table.rows[c * policies + p];
      cells.push_back(Rate(MainRate(table, row.rates())));
      if (gaps) cells.push_back(GapText(table, row));
    }
    text.AddRow(std::move(cells));
  }
  return text.Render();
}

std::vector<uint64_t> Capacities(const ReplayTable& table) {
  std::vector<uint64_t> capacities;
  for (const ReplayRow& row : table.rows) {
    if (capacities.empty() || capacities.back() != row.capacity) {
      capacities.push_back(row.capacity);
    }
  }
  return capacities;
}

}  // namespace

Rates ReplayRow::rates() const { return {Ratio(hits, accesses), Ratio(token_hits, tokens)}; }

double MainRate(const ReplayTable& table, const Rates& rates) {
  return table.in_tokens ? rates.size : rates.objects;
}

std::optional<double> GapClosed(const ReplayTable& table, const ReplayRow& row) {
  if (!row.lru || !row.min) return std::nullopt;
  const double lru = MainRate(table, *row.lru), min = MainRate(table, *row.min);
  if (min <= lru) return std::nullopt;
  return (MainRate(table, row.rates()) - lru) / (min - lru);
}

std::string ReplayJson(const ReplayTable& table) {
  JsonWriter json(2);
  json.BeginObject();
  WriteTrace(json, table);
  if (table.rows.size() == 1) {
    WriteRow(json, table, table.rows.front());
  } else {
    json.Key("rows").BeginArray();
    for (const ReplayRow& row : table.rows) {
      json.BeginObject();
      WriteRow(json, table, row);
      json.EndObject();
    }
    json.EndArray();
  }
  json.EndObject();
  return json.text();
}

std::string ReplayText(const ReplayTable& table) {
  const ReplayRow& first = table.rows.front();
  const std::vector<uint64_t> capacities = Capacities(table);
  std::string text =
      absl::StrCat(table.trace, ": ", table.format, ", ", HumanCount(first.requests), " requests, ",
                   HumanCount(first.accesses), " accesses; ", table.semantics, " hits");
  if (table.window > 0) absl::StrAppend(&text, ", ", table.window, " requests known ahead");
  if (capacities.size() == 1) {
    absl::StrAppend(&text, "; room for ", HumanCount(first.capacity), " ", Sv(Unit(table)), "\n\n",
                    OneSize(table));
  } else {
    absl::StrAppend(&text, "; hits in ", Sv(Unit(table)), " by size in ", Sv(Unit(table)), "\n\n",
                    ManySizes(table, capacities));
  }
  return text;
}

bool PlotReplay(const ReplayTable& table, const std::string& path) {
  const std::string python = FindPython("replay --plot", "plot");
  if (python.empty()) return false;
  return RunProgram({python, "-m", "terrace_kv", "replay-plot", path}, ReplayJson(table)) == 0;
}

}  // namespace terrace::cli
