// What codec 2 keeps beside the sections: up to 64 tables, and of every channel which of them codes
// it and where its cells begin (kernels/symbol_words.h). Made from the chunk itself. Stored form:
// docs/formats/chunk.md. Immutable once made; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/kv_shape.h"
#include "kernels/rans.h"
#include "kernels/symbol_words.h"

namespace terrace::codec {

enum class SignForm : uint8_t { kCoded = 0, kBit = 1, kFixed = 2 };

struct ChannelTable {
  SignForm sign = SignForm::kBit;
  uint8_t shift = 0;
  std::array<uint16_t, kernels::kRansSymbols> frequency{};
};

struct ChannelCode {
  uint8_t table = 0;
  bool negative = false;  // what a fixed sign is
  uint16_t base = 0;      // the lowest cell
};

class ChannelTables {
 public:
  // tables.size() <= 64; codes[s] has a code for each channel of section s.
  ChannelTables(std::vector<ChannelTable> tables, std::vector<std::vector<ChannelCode>> codes);
  // DataLoss saying what is wrong.
  static absl::StatusOr<ChannelTables> Parse(std::span<const uint8_t> bytes, const KvShape& shape);
  std::vector<uint8_t> ToBytes() const;

  const kernels::RansTables& bank() const { return *bank_; }
  const std::vector<ChannelCode>& codes(uint32_t section) const { return codes_[section]; }
  kernels::WordCells Cells(const ChannelCode& code) const;

 private:
  std::vector<ChannelTable> tables_;
  std::vector<std::vector<ChannelCode>> codes_;
  std::unique_ptr<kernels::RansTables> bank_;
};

// words[s]: the words of section s, [channel][stride], shape.tokens of each. The same on every
// machine.
ChannelTables FitChannelTables(const KvShape& shape,
                               const std::vector<std::vector<uint16_t>>& words, size_t stride);

}  // namespace terrace::codec
