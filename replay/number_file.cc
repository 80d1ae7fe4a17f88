#include "replay/number_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::replay {
namespace {

constexpr uint64_t kBlock = 1 << 16;  // numbers

std::string Directory() {
  const char* named = std::getenv("TMPDIR");
  return named != nullptr && *named != '\0' ? named : "/var/tmp";
}

absl::Status Failed() {
  const std::string message =
      absl::StrCat("temporary file in ", Directory(), ": ", std::strerror(errno));
  return errno == ENOSPC ? absl::ResourceExhaustedError(message)
                         : absl::FailedPreconditionError(message);
}

}  // namespace

absl::StatusOr<NumberFile> NumberFile::Create() {
  std::string path = absl::StrCat(Directory(), "/terrace-replay-XXXXXX");
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) return Failed();
  unlink(path.c_str());
  return NumberFile(fd);
}

NumberFile::NumberFile(NumberFile&& other) noexcept { *this = std::move(other); }

NumberFile& NumberFile::operator=(NumberFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  size_ = other.size_;
  tail_ = std::move(other.tail_);
  block_ = std::move(other.block_);
  block_first_ = other.block_first_;
  return *this;
}

NumberFile::~NumberFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status NumberFile::Write(uint64_t first, absl::Span<const uint64_t> numbers) {
  const auto* from = reinterpret_cast<const char*>(numbers.data());
  const size_t bytes = numbers.size() * sizeof(uint64_t);
  for (size_t done = 0; done < bytes;) {
    const ssize_t wrote =
        pwrite(fd_, from + done, bytes - done, static_cast<off_t>(first * sizeof(uint64_t) + done));
    if (wrote < 0 && errno != EINTR) return Failed();
    if (wrote > 0) done += static_cast<size_t>(wrote);
  }
  return absl::OkStatus();
}

absl::Status NumberFile::ReadBlock(uint64_t first, std::vector<uint64_t>& numbers) {
  numbers.resize(std::min(kBlock, size_ - first));
  auto* to = reinterpret_cast<char*>(numbers.data());
  const size_t bytes = numbers.size() * sizeof(uint64_t);
  for (size_t done = 0; done < bytes;) {
    const ssize_t got =
        pread(fd_, to + done, bytes - done, static_cast<off_t>(first * sizeof(uint64_t) + done));
    if (got == 0) errno = EIO;
    if (got <= 0 && errno != EINTR) return Failed();
    if (got > 0) done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status NumberFile::Flush() {
  if (tail_.empty()) return absl::OkStatus();
  const absl::Status status = Write(size_ - tail_.size(), tail_);
  tail_.clear();
  return status;
}

absl::Status NumberFile::Append(uint64_t number) {
  tail_.push_back(number);
  ++size_;
  return tail_.size() < kBlock ? absl::OkStatus() : Flush();
}

absl::Status NumberFile::Set(uint64_t index, uint64_t number) {
  const uint64_t written = size_ - tail_.size();
  if (index >= written) {
    tail_[index - written] = number;
    return absl::OkStatus();
  }
  if (index - block_first_ < block_.size()) block_[index - block_first_] = number;
  return Write(index, {&number, 1});
}

absl::Status NumberFile::RewriteBackwards(
    absl::FunctionRef<uint64_t(uint64_t index, uint64_t number)> change) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  for (uint64_t end = size_; end > 0;) {
    const uint64_t first = (end - 1) / kBlock * kBlock;
    if (absl::Status status = ReadBlock(first, block_); !status.ok()) return status;
    for (uint64_t i = end - first; i-- > 0;) block_[i] = change(first + i, block_[i]);
    if (absl::Status status = Write(first, block_); !status.ok()) return status;
    end = first;
  }
  block_.clear();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> NumberFile::At(uint64_t index) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  if (index - block_first_ >= block_.size()) {  // below block_first_, too
    block_first_ = index / kBlock * kBlock;
    if (absl::Status status = ReadBlock(block_first_, block_); !status.ok()) return status;
  }
  return block_[index - block_first_];
}

}  // namespace terrace::replay
