#include "codec/channel_tables.h"

#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "codec/byte_reader.h"
#include "codec/value_words.h"

namespace terrace::codec {
namespace {

using kernels::kRansSymbols;

constexpr uint16_t kNegativeBit = 0x8000;
constexpr uint32_t kUnusedCoded = 30;  // the symbol that no cell with a coded sign has

template <typename T>
void Append(std::vector<uint8_t>* out, T value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  out->insert(out->end(), bytes, bytes + sizeof value);
}

absl::Status CheckTable(const ChannelTable& table, WordFormat format) {
  if (table.sign > SignForm::kFixed) return absl::DataLossError("its sign is none of 0 .. 2");
  if (table.shift < format.floor || table.shift > 15) {
    return absl::DataLossError(absl::StrCat("its shift is not ", format.floor, " .. 15"));
  }
  if (std::accumulate(table.frequency.begin(), table.frequency.end(), 0u) != kernels::kRansTotal) {
    return absl::DataLossError("its frequencies do not sum to 256");
  }
  if (table.sign == SignForm::kCoded && table.frequency[kUnusedCoded] != 0) {
    return absl::DataLossError("it gives symbol 30 a frequency");
  }
  return absl::OkStatus();
}

}  // namespace

ChannelTables::ChannelTables(std::vector<ChannelTable> tables,
                             std::vector<std::vector<ChannelCode>> codes)
    : tables_(std::move(tables)),
      codes_(std::move(codes)),
      bank_(std::make_unique<kernels::RansTables>()) {
  for (size_t t = 0; t < tables_.size(); ++t) {
    kernels::RansBuildTable(bank_.get(), t, tables_[t].frequency.data());
  }
}

absl::StatusOr<ChannelTables> ChannelTables::Parse(std::span<const uint8_t> bytes,
                                                   const KvShape& shape) {
  ByteReader reader(bytes);
  const auto count = reader.Read<uint32_t>();
  if (count < 1 || count > kernels::kRansTables) {
    return absl::DataLossError("tables: their number is not 1 .. 64");
  }
  std::vector<ChannelTable> tables(count);
  for (uint32_t t = 0; t < count; ++t) {
    tables[t].sign = static_cast<SignForm>(reader.Read<uint8_t>());
    tables[t].shift = reader.Read<uint8_t>();
    reader.Copy(tables[t].frequency.data(), sizeof tables[t].frequency);
    const absl::Status status = CheckTable(tables[t], WordFormatOf(shape.dtype));
    if (!status.ok()) {
      return absl::DataLossError(absl::StrCat("tables: table ", t, ": ", status.message()));
    }
  }
  std::vector<std::vector<ChannelCode>> codes(shape.Sections());
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    const uint32_t channels = shape.Channels(s);
    const auto ids = reader.ReadArray<uint8_t>(channels);
    const auto bases = reader.ReadArray<uint16_t>(channels);
    if (!reader.ok()) return absl::DataLossError("tables: cut off");
    codes[s].resize(channels);
    for (uint32_t c = 0; c < channels; ++c) {
      ChannelCode& code = codes[s][c];
      code = {ids[c], (bases[c] & kNegativeBit) != 0,
              static_cast<uint16_t>(bases[c] & ~kNegativeBit)};
      if (code.table >= count || code.base >> (15 - tables[code.table].shift) != 0) {
        return absl::DataLossError(
            absl::StrCat("tables: section ", s, ", channel ", c, ": no such table or cell"));
      }
    }
  }
  if (reader.left() != 0) return absl::DataLossError("tables: bytes after the last channel");
  return ChannelTables(std::move(tables), std::move(codes));
}

std::vector<uint8_t> ChannelTables::ToBytes() const {
  std::vector<uint8_t> out;
  Append(&out, static_cast<uint32_t>(tables_.size()));
  for (const ChannelTable& table : tables_) {
    Append(&out, table.sign);
    Append(&out, table.shift);
    Append(&out, table.frequency);
  }
  for (const std::vector<ChannelCode>& section : codes_) {
    for (const ChannelCode& code : section) Append(&out, code.table);
    for (const ChannelCode& code : section) {
      Append(&out, static_cast<uint16_t>(code.base | (code.negative ? kNegativeBit : 0)));
    }
  }
  return out;
}

kernels::WordCells ChannelTables::Cells(const ChannelCode& code) const {
  const ChannelTable& table = tables_[code.table];
  using kernels::WordSign;
  WordSign sign = table.sign == SignForm::kCoded ? WordSign::kCoded : WordSign::kBit;
  if (table.sign == SignForm::kFixed) {
    sign = code.negative ? WordSign::kNegative : WordSign::kPositive;
  }
  return {sign, table.shift, code.base};
}

}  // namespace terrace::codec
