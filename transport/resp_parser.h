// Requests of the Redis protocol (RESP) out of a stream of bytes, piece by piece: arrays of bulk
// strings, and inline commands. Values of SET and MSET are not gathered: their bytes are the
// caller's, as they arrive. Memory follows what has arrived, never what was announced.
//
// Not thread-safe; no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace terrace {

class RespParser {
 public:
  static constexpr size_t kMaxLineBytes = 64 * 1024;        // inline command
  static constexpr size_t kMaxArguments = 1024 * 1024;      // announced
  static constexpr size_t kMaxArgumentBytes = 1024 * 1024;  // of one command, without values
  static constexpr uint64_t kMaxBulkBytes = uint64_t{4} << 30;

  enum class Event : uint8_t {
    kNeedMore,   // all of the input that can be used is
    kValue,      // a value begins: take value_bytes() bytes, then call ValueTaken()
    kValueEnd,   // and it was ended properly
    kCommand,    // args() is complete; empty for an empty line. Next() starts another
    kTooLarge,   // the same, but args() are only the leading ones: past kMaxArgumentBytes
    kViolation,  // error() says what; the stream cannot be understood any more
  };

  // Uses leading bytes of `input` and says how many; the rest is given again, with more behind it.
  Event Next(std::string_view input, size_t& used);

  // Arguments so far. Of a value that was streamed the argument is empty.
  const std::vector<std::string>& args() const { return args_; }
  std::vector<std::string> TakeArgs() { return std::move(args_); }
  // Of the array, the command's name included; of an inline command, those there are.
  size_t announced() const { return announced_; }
  // The command's name in upper case, once it is there.
  const std::string& name() const { return name_; }
  uint64_t value_bytes() const { return bulk_bytes_; }
  void ValueTaken() { state_ = State::kValueTail; }
  // Its values, if any, are in args().
  bool is_inline() const { return inline_; }
  // Inside a command: bytes are missing that were announced.
  bool inside() const { return state_ != State::kStart; }
  const char* error() const { return error_; }

 private:
  enum class State : uint8_t { kStart, kBulkHeader, kBulk, kTail, kValue, kValueTail, kFailed };

  Event Fail(const char* error);
  Event Inline(std::string_view line);
  Event Finish();
  // The line at the start of the input without its end; false when it is not complete.
  bool TakeLine(std::string_view input, size_t& used, std::string_view& line, size_t max_bytes);
  bool IsValue() const;
  Event StartArray(std::string_view line);
  Event StartBulk(std::string_view line);
  void Gather(std::string_view input, size_t& used);
  void EndArgument();

  State state_ = State::kStart;
  std::vector<std::string> args_;
  std::string name_;
  size_t announced_ = 0, index_ = 0;  // arguments in all, and which one is under way
  uint64_t bulk_bytes_ = 0, bulk_left_ = 0;
  size_t gathered_bytes_ = 0;
  bool too_large_ = false, inline_ = false, ended_ = false;
  const char* error_ = "";
};

}  // namespace terrace
