// Lines of a text file, one at a time, in constant memory: also of a pipe or a FIFO. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::replay {

inline constexpr size_t kMaxLineBytes = size_t{16} << 20;

class LineReader {
 public:
  // NotFound or FailedPrecondition (a directory, no permission), naming the path.
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(const std::string& path);
  // Reads `text` as if it lay in a file called `name`.
  static std::unique_ptr<LineReader> OfText(std::string name, std::string text);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line that is not blank, without its end; valid until the next call. nullopt at the end
  // of the file. InvalidArgument for a line over kMaxLineBytes, Internal when reading fails.
  absl::StatusOr<std::optional<std::string_view>> Next();
  // The next call of Next gives the same line again. Requires that it gave one.
  void Unread() { unread_ = true; }

  // An InvalidArgument that starts with "FILE:LINE: ", of the line that Next gave last.
  absl::Status Error(absl::string_view what) const;
  const std::string& name() const { return name_; }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  LineReader(std::string name, int fd, std::string buffer);
  absl::Status Fill();

  std::string name_;
  int fd_;  // -1: all is in the buffer
  std::string buffer_;
  size_t begin_ = 0, end_ = 0;  // of what is in the buffer and was not given out
  uint64_t line_ = 0, bytes_read_ = 0;
  std::string_view last_;
  bool unread_ = false;
};

}  // namespace terrace::replay
