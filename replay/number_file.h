// A sequence of 64-bit numbers in an unlinked temporary file: as long as a trace, while memory
// holds two blocks of it. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace::replay {

class NumberFile {
 public:
  // In $TMPDIR, or else /var/tmp, which unlike /tmp is memory nowhere. FailedPrecondition or
  // ResourceExhausted, naming the directory; so do all calls below.
  static absl::StatusOr<NumberFile> Create();
  NumberFile(NumberFile&& other) noexcept;
  NumberFile& operator=(NumberFile&& other) noexcept;
  ~NumberFile();

  absl::Status Append(uint64_t number);
  // Lets `change` see every number from the last to the first and replace it. Ends appending.
  absl::Status RewriteBackwards(
      absl::FunctionRef<uint64_t(uint64_t index, uint64_t number)> change);
  // Requires index < size().
  absl::Status Set(uint64_t index, uint64_t number);
  uint64_t size() const { return size_; }

  // The number at `index`; fast when indices rise from call to call. Ends appending.
  absl::StatusOr<uint64_t> At(uint64_t index);

 private:
  explicit NumberFile(int fd) : fd_(fd) {}
  absl::Status Write(uint64_t first, absl::Span<const uint64_t> numbers);
  absl::Status ReadBlock(uint64_t first, std::vector<uint64_t>& numbers);
  absl::Status Flush();

  int fd_ = -1;
  uint64_t size_ = 0;
  std::vector<uint64_t> tail_;  // appended, not written yet
  std::vector<uint64_t> block_;
  uint64_t block_first_ = 0;
};

}  // namespace terrace::replay
