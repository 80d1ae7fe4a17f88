#include "tiers/nvme/segment_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/buffer.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

namespace {

constexpr uint64_t kSpareDescriptors = 256;  // beside one a segment
constexpr uint64_t kWindowBytes = uint64_t{4} << 20;

absl::Status CallStatus(int64_t result, const char* call, const std::string& path) {
  if (result >= 0) return absl::OkStatus();
  return ErrnoStatus(static_cast<int>(-result), absl::StrCat(call, " ", path));
}

absl::Status WriteHeader(System& system, const SegmentFile& file, const StoreId& store_id) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr)
    return absl::ResourceExhaustedError("no memory for a segment header");
  EncodeSegmentHeader({store_id, file.id, file.generation, file.bytes},
                      {block.data(), kBlockBytes});
  const int64_t written =
      Persist([&] { return system.Write(file.fd, block.data(), kBlockBytes, 0); });
  if (written >= 0 && written != static_cast<int64_t>(kBlockBytes)) {
    return absl::UnavailableError(absl::StrCat("short write to ", file.path));
  }
  absl::Status status = CallStatus(written, "write", file.path);
  if (!status.ok()) return status;
  system.Step("segment.header_written");
  return CallStatus(Persist([&] { return system.Sync(file.fd); }), "fdatasync", file.path);
}

std::string DirectoryOf(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

// Opens for direct I/O. FailedPrecondition where the file system has none.
absl::Status OpenDirect(System& system, SegmentFile& file, int flags) {
  file.fd = system.Open(file.path, O_DIRECT | flags);
  if (file.fd == -EINVAL) {
    return absl::FailedPreconditionError(
        absl::StrCat("the file system of ", file.path, " has no O_DIRECT"));
  }
  return CallStatus(file.fd, "open", file.path);
}

bool ParseSegmentFileName(const std::string& name, uint32_t& id) {
  unsigned parsed = 0;
  if (std::sscanf(name.c_str(), "seg-%8x.tseg", &parsed) != 1) return false;
  id = parsed;
  return SegmentName(id) == name;
}

// Calls `visit(path, id)` for every file with a segment's name until it fails.
template <typename Visit>
absl::Status ForEachSegmentFile(const std::string& directory, Visit visit) {
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    uint32_t id = 0;
    if (!ParseSegmentFileName(entries->path().filename().string(), id)) continue;
    absl::Status status = visit(entries->path().string(), id);
    if (!status.ok()) return status;
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat("list ", directory));
  return absl::OkStatus();
}

absl::StatusOr<SegmentHeader> ReadHeader(System& system, const SegmentFile& file,
                                         const kernels::AlignedBuffer& block) {
  absl::Status status = ReadBlocks(system, file, 0, kBlockBytes, block.data());
  if (!status.ok()) return status;
  return DecodeSegmentHeader({block.data(), kBlockBytes});
}

absl::StatusOr<FoundSegment> OpenSegmentFile(System& system, const std::string& path, uint32_t id,
                                             const StoreId& store_id,
                                             const kernels::AlignedBuffer& block, bool read_only) {
  FoundSegment found;
  found.file = std::make_shared<SegmentFile>();
  SegmentFile& file = *found.file;
  file.path = path;
  file.id = id;
  file.state = SegmentFile::State::kReady;
  absl::Status status = OpenDirect(system, file, read_only ? O_RDONLY : O_RDWR);
  if (!status.ok()) return status;
  struct stat info;
  if (fstat(file.fd, &info) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  file.bytes = static_cast<uint64_t>(info.st_size) / kBlockBytes * kBlockBytes;
  absl::StatusOr<SegmentHeader> header = ReadHeader(system, file, block);
  found.unreadable = absl::IsUnavailable(header.status());
  if (!header.ok()) return found;
  found.foreign = header->store_id != store_id;
  if (found.foreign || header->segment_id != id) return found;
  found.header_ok = true;
  file.generation = header->generation;
  return found;
}

// A file read forward through a window of memory.
class Window {
 public:
  Window(System& system, const SegmentFile& file)
      : system_(system), file_(file), buffer_(kWindowBytes) {}

  bool allocated() const { return buffer_.data() != nullptr; }
  // Why something could not be read, other than that it is not there.
  const absl::Status& status() const { return status_; }
  // The bytes [offset, offset + bytes) of the file, until the next call; empty when they are not
  // there or cannot be read. `bytes` is less than the window by a block at least.
  ConstBytes At(uint64_t offset, uint64_t bytes) {
    if (offset + bytes > file_.bytes) return {};
    if (offset < begin_ || offset + bytes > end_) {
      begin_ = offset / kBlockBytes * kBlockBytes;
      end_ = std::min(begin_ + kWindowBytes, file_.bytes);
      const absl::Status read = ReadBlocks(system_, file_, begin_, end_ - begin_, buffer_.data());
      if (!read.ok()) {
        if (!absl::IsDataLoss(read)) status_.Update(read);
        begin_ = end_ = 0;
        return {};
      }
    }
    return {buffer_.data() + (offset - begin_), bytes};
  }

 private:
  System& system_;
  const SegmentFile& file_;
  kernels::AlignedBuffer buffer_;
  uint64_t begin_ = 0, end_ = 0;
  absl::Status status_;
};

absl::StatusOr<RecordHeader> HeaderAt(Window& window, uint64_t offset) {
  absl::StatusOr<uint64_t> bytes = RecordHeaderBytes(window.At(offset, kBlockBytes));
  if (!bytes.ok()) return bytes.status();
  return DecodeRecordHeader(window.At(offset, *bytes));
}

// Whether the payload that begins at `offset` is what the header says. Fills in the grain filters.
bool PayloadChecks(Window& window, uint64_t offset, RecordHeader& header) {
  size_t piece = 0;
  bool good = true;
  ForEachPiece(header.meta.part_ends, [&](uint32_t part, uint64_t begin, uint64_t end) {
    const ConstBytes bytes = window.At(offset + begin, end - begin);
    good = bytes.size() == end - begin &&
           kernels::Crc32c(bytes.data(), bytes.size()) == header.piece_crcs[piece++];
    if (good && part == 0) header.meta.grain_filters = GrainFilters(header.meta, bytes.data());
    return good;
  });
  return good;
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

absl::Status AllowSegments(uint64_t segments) {
  const uint64_t needed = segments + kSpareDescriptors;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "getrlimit");
  if (limit.rlim_cur >= needed) return absl::OkStatus();
  if (limit.rlim_max < needed) {
    return absl::FailedPreconditionError(
        absl::StrCat("the NVMe tier needs ", needed, " file descriptors and this process may open ",
                     limit.rlim_max, ": raise the limit (ulimit -n), or nvme.segment_size"));
  }
  limit.rlim_cur = needed;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "setrlimit");
  return absl::OkStatus();
}

absl::Status CreateSegmentFile(System& system, SegmentFile& file, const StoreId& store_id) {
  absl::Status status = OpenDirect(system, file, O_RDWR | O_CREAT | O_TRUNC);
  system.Step("segment.created");
  if (status.ok()) {
    int result = Persist([&] { return system.Allocate(file.fd, file.bytes); });
    // Where a file system cannot allocate ahead, the length alone is set and a full disk shows at
    // the writes.
    if (result == -EOPNOTSUPP) result = system.Truncate(file.fd, file.bytes);
    status = CallStatus(result, "allocate", file.path);
  }
  system.Step("segment.allocated");
  if (status.ok()) status = WriteHeader(system, file, store_id);
  system.Step("segment.header_synced");
  if (status.ok()) {
    const int synced = Persist([&] { return system.SyncDirectory(DirectoryOf(file.path)); });
    status = CallStatus(synced, "fsync directory of", file.path);
  }
  if (!status.ok() && file.fd >= 0) system.Unlink(file.path);
  return status;
}

absl::Status RewriteSegmentHeader(System& system, const SegmentFile& file,
                                  const StoreId& store_id) {
  return WriteHeader(system, file, store_id);
}

absl::Status ReadBlocks(System& system, const SegmentFile& file, uint64_t offset, uint64_t bytes,
                        uint8_t* to) {
  uint64_t done = 0;
  while (done < bytes) {
    const int64_t count =
        Persist([&] { return system.Read(file.fd, to + done, bytes - done, offset + done); });
    if (count < 0) return CallStatus(count, "read", file.path);
    const uint64_t whole = static_cast<uint64_t>(count) / kBlockBytes * kBlockBytes;
    if (whole == 0) {
      return absl::DataLossError(
          absl::StrCat(file.path, " ends before ", offset + bytes, " bytes"));
    }
    done += whole;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FoundSegment>> OpenSegmentFiles(System& system,
                                                           const std::string& directory,
                                                           const StoreId& store_id,
                                                           bool read_only) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr)
    return absl::ResourceExhaustedError("no memory for a segment header");
  std::vector<FoundSegment> found;
  absl::Status status = ForEachSegmentFile(directory, [&](const std::string& path, uint32_t id) {
    absl::StatusOr<FoundSegment> segment =
        OpenSegmentFile(system, path, id, store_id, block, read_only);
    if (segment.ok()) found.push_back(*std::move(segment));
    return segment.status();
  });
  if (!status.ok()) return status;
  std::sort(found.begin(), found.end(),
            [](const FoundSegment& a, const FoundSegment& b) { return a.file->id < b.file->id; });
  return found;
}

std::optional<StoreId> StoreIdOfSegments(System& system, const std::string& directory) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr) return std::nullopt;
  std::map<StoreId, int> votes;
  static_cast<void>(ForEachSegmentFile(directory, [&](const std::string& path, uint32_t id) {
    SegmentFile file;
    file.path = path;
    if (!OpenDirect(system, file, O_RDONLY).ok()) return absl::OkStatus();
    absl::StatusOr<SegmentHeader> header = ReadHeader(system, file, block);
    if (header.ok() && header->segment_id == id) ++votes[header->store_id];
    return absl::OkStatus();
  }));
  auto most = std::max_element(votes.begin(), votes.end(),
                               [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == votes.end()) return std::nullopt;
  return most->first;
}

absl::Status ScanSegment(System& system, const SegmentFile& file, const StoreId& store_id,
                         VisitRecord visit) {
  Window window(system, file);
  if (!window.allocated()) return absl::ResourceExhaustedError("no memory to scan a segment");
  for (uint64_t offset = kBlockBytes; offset + kBlockBytes <= file.bytes;) {
    absl::StatusOr<RecordHeader> header = HeaderAt(window, offset);
    // A stale header of an earlier generation may lie inside what a later one wrote over.
    const bool ours = header.ok() && header->store_id == store_id &&
                      header->segment_id == file.id && header->generation == file.generation;
    if (!ours) {
      offset += kBlockBytes;
      continue;
    }
    const uint64_t header_bytes = HeaderBytes(header->meta.part_ends);
    const uint64_t payload_bytes = AlignUp(header->meta.payload_bytes, kBlockBytes);
    const bool whole = PayloadChecks(window, offset + header_bytes, *header);
    if (!window.status().ok()) break;
    visit({offset, *header, whole});
    // What lies inside of a torn one may be whole.
    offset += header_bytes + (whole ? payload_bytes : 0);
  }
  return window.status();
}

absl::StatusOr<uint64_t> ScanForGeneration(System& system, const SegmentFile& file,
                                           const StoreId& store_id) {
  Window window(system, file);
  if (!window.allocated()) return absl::ResourceExhaustedError("no memory to scan a segment");
  uint64_t newest = 0;
  for (uint64_t offset = kBlockBytes; offset < file.bytes; offset += kBlockBytes) {
    absl::StatusOr<RecordHeader> header = HeaderAt(window, offset);
    if (header.ok() && header->store_id == store_id && header->segment_id == file.id) {
      newest = std::max(newest, header->generation);
    }
  }
  if (!window.status().ok()) return window.status();
  return newest;
}

absl::StatusOr<Footer> ReadFooter(System& system, const SegmentFile& file,
                                  const StoreId& store_id) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr) return absl::ResourceExhaustedError("no memory for a footer");
  if (file.bytes < 3 * kBlockBytes) return absl::DataLossError("no room for a footer");
  absl::Status status =
      ReadBlocks(system, file, file.bytes - kBlockBytes, kBlockBytes, block.data());
  if (!status.ok()) return status;
  absl::StatusOr<Footer> footer = DecodeFooterBlock({block.data(), kBlockBytes});
  if (!footer.ok()) return footer.status();
  const bool ours = footer->store_id == store_id && footer->segment_id == file.id &&
                    footer->generation == file.generation;
  if (ours && footer->entries_bytes <= file.bytes - 2 * kBlockBytes) return footer;
  return absl::DataLossError(absl::StrCat(file.path, ": footer of another segment"));
}

absl::StatusOr<FooterEntries> ReadFooterEntries(System& system, const SegmentFile& file,
                                                const absl::StatusOr<Footer>& footer) {
  if (!footer.ok()) return footer.status();
  FooterEntries entries;
  entries.memory = kernels::AlignedBuffer(std::max(footer->entries_bytes, kBlockBytes));
  if (entries.memory.data() == nullptr) {
    return absl::ResourceExhaustedError("no memory for a footer");
  }
  const uint64_t begin = file.bytes - FooterBytes(footer->entries_bytes);
  absl::Status status = ReadBlocks(system, file, begin, AlignUp(footer->entries_bytes, kBlockBytes),
                                   entries.memory.data());
  if (!status.ok()) return status;
  entries.entries = {reinterpret_cast<const char*>(entries.memory.data()), footer->entries_bytes};
  status = CheckEntries(*footer, entries.entries);
  if (!status.ok()) return status;
  return entries;
}

}  // namespace terrace::nvme
