#include "replay/line_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::replay {
namespace {

constexpr size_t kFirstBufferBytes = size_t{256} << 10;

std::string_view WithoutTrailingBlanks(std::string_view line) {
  return line.substr(0, line.find_last_not_of(" \t\r") + 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::FailedPreconditionError(message);
  }
  std::unique_ptr<LineReader> reader(
      new LineReader(path, fd, std::string(kFirstBufferBytes, '\0')));
  struct stat status {};
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": is a directory"));
  }
  return reader;
}

std::unique_ptr<LineReader> LineReader::OfText(std::string name, std::string text) {
  const size_t size = text.size();
  std::unique_ptr<LineReader> reader(new LineReader(std::move(name), -1, std::move(text)));
  reader->end_ = size;
  return reader;
}

LineReader::LineReader(std::string name, int fd, std::string buffer)
    : name_(std::move(name)), fd_(fd), buffer_(std::move(buffer)) {}

LineReader::~LineReader() {
  if (fd_ >= 0) close(fd_);
}

// Makes the buffer hold more of the file, or none left: then fd_ is -1.
absl::Status LineReader::Fill() {
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= std::exchange(begin_, 0);
  if (end_ == buffer_.size()) buffer_.resize(2 * buffer_.size());
  ssize_t got;
  do {
    got = read(fd_, buffer_.data() + end_, buffer_.size() - end_);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return absl::InternalError(absl::StrCat(name_, ": ", std::strerror(errno)));
  if (got == 0) close(std::exchange(fd_, -1));
  end_ += static_cast<size_t>(got);
  bytes_read_ += static_cast<uint64_t>(got);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string_view>> LineReader::Next() {
  if (std::exchange(unread_, false)) return last_;
  size_t searched = 0;  // from begin_
  while (true) {
    const char* from = buffer_.data() + begin_;
    const auto* newline =
        static_cast<const char*>(std::memchr(from + searched, '\n', end_ - begin_ - searched));
    if (newline == nullptr && fd_ >= 0) {
      searched = end_ - begin_;
      if (searched <= kMaxLineBytes) {
        if (absl::Status status = Fill(); !status.ok()) return status;
        continue;
      }
    }
    if (newline == nullptr && begin_ == end_) return std::nullopt;
    const size_t length = newline != nullptr ? newline - from : end_ - begin_;
    if (length > kMaxLineBytes) {
      ++line_;
      return Error(absl::StrCat("the line is longer than ", kMaxLineBytes, " bytes"));
    }
    begin_ += length + (newline != nullptr ? 1 : 0);
    searched = 0;
    ++line_;
    last_ = WithoutTrailingBlanks({from, length});
    if (!last_.empty()) return last_;
  }
}

absl::Status LineReader::Error(absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(name_, ":", line_, ": ", what));
}

}  // namespace terrace::replay
