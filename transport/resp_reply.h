// Replies of the Redis protocol as bytes, for RESP2 and RESP3. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace terrace {

class RespReply {
 public:
  explicit RespReply(std::string& out) : out_(out) {}

  void Simple(std::string_view text) { absl::StrAppend(&out_, "+", View(text), "\r\n"); }
  // `text` starts with the code: "ERR ...". Line ends in it become spaces.
  void Error(std::string_view text) {
    const size_t begin = out_.size();
    absl::StrAppend(&out_, "-", View(text));
    for (size_t i = begin; i < out_.size(); ++i) {
      if (out_[i] == '\r' || out_[i] == '\n') out_[i] = ' ';
    }
    out_ += "\r\n";
  }
  void Integer(int64_t value) { absl::StrAppend(&out_, ":", value, "\r\n"); }
  // The bytes and their line end follow.
  void BulkHeader(uint64_t bytes) { absl::StrAppend(&out_, "$", bytes, "\r\n"); }
  void Bulk(std::string_view bytes) {
    BulkHeader(bytes.size());
    absl::StrAppend(&out_, View(bytes), "\r\n");
  }
  void Nil(int protocol) { out_ += protocol >= 3 ? "_\r\n" : "$-1\r\n"; }
  void Array(size_t count) { absl::StrAppend(&out_, "*", count, "\r\n"); }
  // Of so many pairs; RESP2 has an array of twice as many instead.
  void Map(size_t pairs, int protocol) {
    absl::StrAppend(&out_, protocol >= 3 ? "%" : "*", protocol >= 3 ? pairs : 2 * pairs, "\r\n");
  }

 private:
  static absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

  std::string& out_;
};

}  // namespace terrace
