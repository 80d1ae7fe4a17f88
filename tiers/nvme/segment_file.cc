#include "tiers/nvme/segment_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/buffer.h"

namespace terrace::nvme {

namespace {

constexpr uint64_t kScanBytes = uint64_t{1} << 20;

absl::Status Failed(const char* call, const std::string& path) {
  return ErrnoStatus(errno, absl::StrCat(call, " ", path));
}

absl::Status WriteHeader(const SegmentFile& file, const StoreId& store_id) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr)
    return absl::ResourceExhaustedError("no memory for a segment header");
  EncodeSegmentHeader({store_id, file.id, file.generation, file.bytes},
                      {block.data(), kBlockBytes});
  const ssize_t written = pwrite(file.fd, block.data(), kBlockBytes, 0);
  if (written < 0) return Failed("write", file.path);
  if (written != static_cast<ssize_t>(kBlockBytes)) {
    return absl::UnavailableError(absl::StrCat("short write to ", file.path));
  }
  if (fdatasync(file.fd) != 0) return Failed("fdatasync", file.path);
  return absl::OkStatus();
}

absl::Status SyncDirectoryOf(const std::string& path) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Failed("open", directory);
  absl::Cleanup close_fd = [fd] { close(fd); };
  return fsync(fd) == 0 ? absl::OkStatus() : Failed("fsync", directory);
}

// Opens for direct I/O. FailedPrecondition where the file system has none.
absl::Status OpenDirect(SegmentFile& file, int flags) {
  file.fd = open(file.path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC | flags, 0600);
  if (file.fd >= 0) return absl::OkStatus();
  if (errno == EINVAL) {
    return absl::FailedPreconditionError(
        absl::StrCat("the file system of ", file.path, " has no O_DIRECT"));
  }
  return Failed("open", file.path);
}

bool ParseSegmentFileName(const std::string& name, uint32_t& id) {
  unsigned parsed = 0;
  if (std::sscanf(name.c_str(), "seg-%8x.tseg", &parsed) != 1) return false;
  id = parsed;
  return SegmentName(id) == name;
}

absl::StatusOr<FoundSegment> OpenSegmentFile(const std::string& path, uint32_t id,
                                             const StoreId& store_id,
                                             const kernels::AlignedBuffer& block) {
  FoundSegment found;
  found.file = std::make_shared<SegmentFile>();
  SegmentFile& file = *found.file;
  file.path = path;
  file.id = id;
  file.state = SegmentFile::State::kReady;
  absl::Status status = OpenDirect(file, 0);
  if (!status.ok()) return status;
  struct stat info;
  if (fstat(file.fd, &info) != 0) return Failed("stat", path);
  file.bytes = static_cast<uint64_t>(info.st_size) / kBlockBytes * kBlockBytes;
  if (!ReadBlocks(file, 0, kBlockBytes, block.data()).ok()) return found;
  absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader({block.data(), kBlockBytes});
  if (!header.ok() || header->store_id != store_id || header->segment_id != id) return found;
  found.header_ok = true;
  file.generation = header->generation;
  return found;
}

}  // namespace

SegmentFile::~SegmentFile() {
  if (fd >= 0) close(fd);
}

absl::Status ErrnoStatus(int error, const std::string& what) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:  // the process may not write files this long
      return absl::ResourceExhaustedError(absl::StrCat(what, ": ", std::strerror(error)));
    case EIO:
      return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
    default:
      return absl::ErrnoToStatus(error, what);
  }
}

absl::Status CreateSegmentFile(SegmentFile& file, const StoreId& store_id) {
  absl::Status status = OpenDirect(file, O_CREAT | O_TRUNC);
  if (status.ok() && fallocate(file.fd, 0, 0, static_cast<off_t>(file.bytes)) != 0) {
    // Where a file system cannot allocate ahead, the length alone is set and a full disk shows at
    // the writes.
    if (errno != EOPNOTSUPP || ftruncate(file.fd, static_cast<off_t>(file.bytes)) != 0) {
      status = Failed("allocate", file.path);
    }
  }
  if (status.ok()) status = WriteHeader(file, store_id);
  if (status.ok()) status = SyncDirectoryOf(file.path);
  if (!status.ok() && file.fd >= 0) unlink(file.path.c_str());
  return status;
}

absl::Status RewriteSegmentHeader(const SegmentFile& file, const StoreId& store_id) {
  return WriteHeader(file, store_id);
}

absl::Status ReadBlocks(const SegmentFile& file, uint64_t offset, uint64_t bytes, uint8_t* to) {
  uint64_t done = 0;
  while (done < bytes) {
    const ssize_t count =
        pread(file.fd, to + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("read", file.path);
    if (count == 0 || count % kBlockBytes != 0) {
      return absl::DataLossError(
          absl::StrCat(file.path, " ends before ", offset + bytes, " bytes"));
    }
    done += count;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FoundSegment>> OpenSegmentFiles(const std::string& directory,
                                                           const StoreId& store_id) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr)
    return absl::ResourceExhaustedError("no memory for a segment header");
  std::vector<FoundSegment> found;
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string path = entries->path().string();
    uint32_t id = 0;
    if (!ParseSegmentFileName(entries->path().filename().string(), id)) continue;
    absl::StatusOr<FoundSegment> segment = OpenSegmentFile(path, id, store_id, block);
    if (!segment.ok()) return segment.status();
    found.push_back(*std::move(segment));
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat("list ", directory));
  std::sort(found.begin(), found.end(),
            [](const FoundSegment& a, const FoundSegment& b) { return a.file->id < b.file->id; });
  return found;
}

absl::Status ScanSegment(const SegmentFile& file, const StoreId& store_id, VisitHeader visit) {
  kernels::AlignedBuffer buffer(kScanBytes);
  if (buffer.data() == nullptr) return absl::ResourceExhaustedError("no memory to scan a segment");
  uint64_t offset = kBlockBytes;
  uint64_t buffered_begin = 0, buffered_end = 0;
  while (offset < file.bytes) {
    if (offset < buffered_begin || offset >= buffered_end) {
      buffered_begin = offset;
      buffered_end = std::min(offset + kScanBytes, file.bytes);
      absl::Status status =
          ReadBlocks(file, buffered_begin, buffered_end - buffered_begin, buffer.data());
      if (!status.ok()) return status;
    }
    absl::StatusOr<RecordHeader> header =
        DecodeRecordHeader({buffer.data() + (offset - buffered_begin), kBlockBytes});
    const bool ours = header.ok() && header->store_id == store_id && header->segment_id == file.id;
    if (!ours) {
      offset += kBlockBytes;
      continue;
    }
    const uint64_t record_bytes = RecordBytes(header->meta.payload_bytes);
    if (record_bytes <= file.bytes - offset) visit(offset, *header);
    // A stale header of an earlier generation may lie inside what a later one wrote over: only a
    // record of the file's generation is known to be whole from here to its end.
    offset += header->generation == file.generation ? record_bytes : kBlockBytes;
  }
  return absl::OkStatus();
}

}  // namespace terrace::nvme
