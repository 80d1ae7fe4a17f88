#include "transport/resp_parser.h"

#include <algorithm>
#include <charconv>

namespace terrace {
namespace {

constexpr size_t kMaxHeaderBytes = 32;  // "*" or "$" and a number

std::string UpperCase(std::string_view text) {
  std::string upper(text);
  for (char& c : upper) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return upper;
}

bool ParseNumber(std::string_view digits, int64_t& number) {
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return error == std::errc() && end == digits.data() + digits.size();
}

}  // namespace

RespParser::Event RespParser::Fail(const char* error) {
  state_ = State::kFailed;
  error_ = error;
  return Event::kViolation;
}

bool RespParser::TakeLine(std::string_view input, size_t& used, std::string_view& line,
                          size_t max_bytes) {
  const std::string_view rest = input.substr(used);
  const size_t end = rest.substr(0, max_bytes).find('\n');
  if (end == std::string_view::npos) {
    if (rest.size() >= max_bytes) Fail("line too long");
    return false;
  }
  line = rest.substr(0, end);
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  used += end + 1;
  return true;
}

// Of SET the value, of MSET every other argument.
bool RespParser::IsValue() const {
  if (too_large_) return false;
  if (name_ == "SET") return index_ == 2;
  return name_ == "MSET" && index_ >= 2 && index_ % 2 == 0;
}

RespParser::Event RespParser::Inline(std::string_view line) {
  while (!line.empty()) {
    const size_t begin = line.find_first_not_of(" \t");
    if (begin == std::string_view::npos) break;
    line.remove_prefix(begin);
    const size_t end = std::min(line.find_first_of(" \t"), line.size());
    args_.emplace_back(line.substr(0, end));
    line.remove_prefix(end);
  }
  inline_ = true;
  announced_ = args_.size();
  if (!args_.empty()) name_ = UpperCase(args_[0]);
  return Finish();
}

RespParser::Event RespParser::StartArray(std::string_view line) {
  int64_t count = 0;
  if (!ParseNumber(line.substr(1), count) || count > static_cast<int64_t>(kMaxArguments)) {
    return Fail("invalid multibulk length");
  }
  if (count <= 0) return Finish();
  announced_ = static_cast<size_t>(count);
  state_ = State::kBulkHeader;
  return Event::kNeedMore;
}

RespParser::Event RespParser::StartBulk(std::string_view line) {
  int64_t bytes = 0;
  if (line.empty() || line[0] != '$') return Fail("expected '$'");
  if (!ParseNumber(line.substr(1), bytes) || bytes < 0 ||
      static_cast<uint64_t>(bytes) > kMaxBulkBytes) {
    return Fail("invalid bulk length");
  }
  bulk_bytes_ = bulk_left_ = static_cast<uint64_t>(bytes);
  if (IsValue()) {
    state_ = State::kValue;
    return Event::kValue;
  }
  // From here on arguments are passed over.
  if (bulk_bytes_ > kMaxArgumentBytes - gathered_bytes_) too_large_ = true;
  if (!too_large_) args_.emplace_back();
  state_ = State::kBulk;
  return Event::kNeedMore;
}

void RespParser::Gather(std::string_view input, size_t& used) {
  const size_t bytes = std::min<uint64_t>(bulk_left_, input.size() - used);
  if (!too_large_) {
    args_.back().append(input.substr(used, bytes));
    gathered_bytes_ += bytes;
  }
  used += bytes;
  bulk_left_ -= bytes;
  if (bulk_left_ == 0) state_ = State::kTail;
}

void RespParser::EndArgument() {
  if (index_ == 0 && !args_.empty()) name_ = UpperCase(args_[0]);
  ++index_;
  // What an argument costs beyond its bytes: empty ones are not free.
  gathered_bytes_ = std::min(gathered_bytes_ + sizeof(std::string), kMaxArgumentBytes);
  state_ = State::kBulkHeader;
}

RespParser::Event RespParser::Finish() {
  state_ = State::kStart;
  ended_ = true;
  return too_large_ ? Event::kTooLarge : Event::kCommand;
}

RespParser::Event RespParser::Next(std::string_view input, size_t& used) {
  used = 0;
  if (ended_) {
    args_.clear();
    name_.clear();
    announced_ = index_ = gathered_bytes_ = 0;
    too_large_ = inline_ = ended_ = false;
  }
  while (state_ != State::kFailed) {
    std::string_view line;
    switch (state_) {
      case State::kStart: {
        if (used == input.size()) return Event::kNeedMore;
        const bool array = input[used] == '*';
        if (!TakeLine(input, used, line, array ? kMaxHeaderBytes : kMaxLineBytes)) break;
        if (!array) return Inline(line);
        if (StartArray(line) == Event::kCommand) return Event::kCommand;
        continue;
      }
      case State::kBulkHeader:
        if (index_ == announced_) return Finish();
        if (!TakeLine(input, used, line, kMaxHeaderBytes)) break;
        if (StartBulk(line) == Event::kValue) return Event::kValue;
        continue;
      case State::kBulk:
        Gather(input, used);
        if (state_ == State::kBulk) return Event::kNeedMore;
        continue;
      case State::kTail:
      case State::kValueTail: {
        if (input.size() - used < 2) return Event::kNeedMore;
        if (input.substr(used, 2) != "\r\n") return Fail("a bulk string is longer than it says");
        used += 2;
        const bool value = state_ == State::kValueTail;
        if (value) args_.emplace_back();
        EndArgument();
        if (value) return Event::kValueEnd;
        continue;
      }
      case State::kValue:
        return Event::kValue;
      case State::kFailed:
        break;
    }
    if (state_ != State::kFailed) return Event::kNeedMore;
  }
  return Event::kViolation;
}

}  // namespace terrace
