#include "tests/support/disk_model.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "kernels/buffer.h"
#include "tiers/nvme/record.h"

namespace terrace {

namespace {

constexpr uint64_t kBlock = nvme::kBlockBytes;
constexpr uint64_t kSector = 512;

uint64_t BytesOf(const nvme::IoOp& op) {
  uint64_t bytes = 0;
  for (int i = 0; i < op.buffer_count; ++i) bytes += op.buffers[i].iov_len;
  return bytes;
}

kernels::AlignedBuffer Gather(const nvme::IoOp& op) {
  kernels::AlignedBuffer whole(BytesOf(op));
  uint8_t* to = whole.data();
  for (int i = 0; i < op.buffer_count; ++i) {
    std::memcpy(to, op.buffers[i].iov_base, op.buffers[i].iov_len);
    to += op.buffers[i].iov_len;
  }
  return whole;
}

// What is not there reads as zeroes.
void ReadOr0(int fd, uint8_t* to, uint64_t bytes, uint64_t offset) {
  const ssize_t count = pread(fd, to, bytes, static_cast<off_t>(offset));
  const uint64_t there = count > 0 ? static_cast<uint64_t>(count) : 0;
  std::memset(to + there, 0, bytes - there);
}

bool WriteAll(int fd, const uint8_t* from, uint64_t bytes, uint64_t offset) {
  return pwrite(fd, from, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes);
}

}  // namespace

DiskModel::File& DiskModel::FileOf(int fd) { return files_[paths_[fd]]; }

void DiskModel::Opened(int fd, const std::string& path, bool created, bool emptied) {
  paths_[fd] = path;
  if (created) new_names_.insert(path);
  if (created || emptied) Renamed(path);
  File& file = files_[path];
  if (file.fd < 0) file.fd = open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
}

void DiskModel::Removed(const std::string& path) {
  new_names_.erase(path);
  Renamed(path);
}

void DiskModel::Renamed(const std::string& from) {
  auto file = files_.find(from);
  if (file == files_.end()) return;
  if (file->second.fd >= 0) close(file->second.fd);
  files_.erase(file);
}

void DiskModel::DirectorySynced(const std::string& directory) {
  std::erase_if(new_names_, [&](const std::string& path) {
    return std::filesystem::path(path).parent_path() == directory;
  });
}

void DiskModel::WriteBegun(int fd, uint64_t offset, uint64_t bytes) {
  File& file = FileOf(fd);
  kernels::AlignedBuffer before;
  for (uint64_t block = offset / kBlock; block * kBlock < offset + bytes; ++block) {
    auto [entry, fresh] = file.unsynced.try_emplace(block);
    entry->second.written = 0;
    if (!fresh) continue;
    if (before.data() == nullptr) {
      before = kernels::AlignedBuffer(bytes);
      ReadOr0(file.fd, before.data(), before.size_bytes(), offset);
    }
    const uint8_t* begin = before.data() + (block * kBlock - offset);
    entry->second.before.assign(begin, begin + kBlock);
  }
}

void DiskModel::WriteEnded(int fd, uint64_t offset, uint64_t bytes) {
  File& file = FileOf(fd);
  ++clock_;
  for (uint64_t block = offset / kBlock; block * kBlock < offset + bytes; ++block) {
    auto entry = file.unsynced.find(block);
    if (entry != file.unsynced.end()) entry->second.written = clock_;
  }
}

uint64_t DiskModel::SyncBegun(int) { return ++clock_; }

void DiskModel::SyncEnded(int fd, uint64_t begun) {
  std::erase_if(FileOf(fd).unsynced, [begun](const auto& entry) {
    return entry.second.written > 0 && entry.second.written < begun;
  });
}

void DiskModel::NoteRecords(const nvme::IoOp& op) {
  uint64_t offset = op.offset;
  for (int i = 0; i < op.buffer_count; offset += op.buffers[i++].iov_len) {
    const nvme::ConstBytes bytes(static_cast<const uint8_t*>(op.buffers[i].iov_base),
                                 op.buffers[i].iov_len);
    if (!nvme::RecordHeaderBytes(bytes.first(std::min(bytes.size(), kBlock))).ok()) continue;
    absl::StatusOr<nvme::RecordHeader> header = nvme::DecodeRecordHeader(bytes);
    if (!header.ok()) continue;
    const uint64_t end = offset + nvme::HeaderBytes(header->meta.part_ends) +
                         AlignUp(header->meta.payload_bytes, kBlock);
    std::map<uint64_t, Extent>& records = FileOf(op.fd).records;
    std::erase_if(records, [&](const auto& record) {
      return record.first < end && record.second.end > offset;
    });
    records[offset] = {end, header->meta.key};
  }
}

void DiskModel::Damage(int fd, uint64_t offset, uint64_t bytes) {
  File& file = FileOf(fd);
  for (uint64_t at = offset; at < offset + bytes; at += kBlock) file.damaged.insert(at / kBlock);
}

void DiskModel::Mend(int fd, uint64_t offset, uint64_t bytes) {
  File& file = FileOf(fd);
  file.damaged.erase(file.damaged.lower_bound(offset / kBlock),
                     file.damaged.lower_bound((offset + bytes) / kBlock));
}

bool DiskModel::IsDamaged(const ObjectKey& key) const {
  for (const auto& [path, file] : files_) {
    for (const auto& [offset, extent] : file.records) {
      if (extent.key != key) continue;
      auto damaged = file.damaged.lower_bound(offset / kBlock);
      if (damaged != file.damaged.end() && *damaged * kBlock < extent.end) return true;
    }
  }
  return false;
}

bool DiskModel::WriteTorn(const nvme::IoOp& op, Random& random) {
  const File& file = FileOf(op.fd);
  const kernels::AlignedBuffer meant = Gather(op);
  const uint64_t bytes = BytesOf(op);
  kernels::AlignedBuffer mixed(bytes);
  ReadOr0(file.fd, mixed.data(), bytes, op.offset);
  // A head of it, a tail of it, or any of its sectors.
  const uint64_t cut = random() % (bytes / kSector + 1) * kSector;
  const uint64_t shape = random() % 3;
  for (uint64_t at = 0; at < bytes; at += kSector) {
    const bool written = shape == 0 ? at < cut : shape == 1 ? at >= cut : random() % 2 == 0;
    if (written) std::memcpy(mixed.data() + at, meant.data() + at, kSector);
  }
  return WriteAll(file.fd, mixed.data(), bytes, op.offset);
}

bool DiskModel::WriteElsewhere(const nvme::IoOp& op, Random& random) {
  const File& file = FileOf(op.fd);
  const uint64_t bytes = BytesOf(op);
  struct stat info {};
  if (fstat(file.fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < bytes) return false;
  const uint64_t places = (static_cast<uint64_t>(info.st_size) - bytes) / kBlock + 1;
  const uint64_t offset = random() % places * kBlock;
  Damage(op.fd, offset, bytes);
  return WriteAll(file.fd, Gather(op).data(), bytes, offset);
}

// `policy`: how likely a block is kept as written, of 4; a third of the others are mixed.
void DiskModel::CutPower(File& file, uint64_t policy, Random& random) {
  kernels::AlignedBuffer block(kBlock);
  for (const auto& [index, unsynced] : file.unsynced) {
    if (random() % 4 < policy) continue;
    const bool mix = random() % 3 == 0;
    ReadOr0(file.fd, block.data(), kBlock, index * kBlock);
    for (uint64_t at = 0; at < kBlock; at += kSector) {
      if (mix && random() % 2 == 0) continue;
      std::memcpy(block.data() + at, unsynced.before.data() + at, kSector);
    }
    WriteAll(file.fd, block.data(), kBlock, index * kBlock);
    file.damaged.insert(index);
  }
  file.unsynced.clear();
}

void DiskModel::PowerCut(Random& random) {
  const uint64_t policy = random() % 5;
  for (auto& [path, file] : files_) CutPower(file, policy, random);
  for (const std::string& path : new_names_) {
    if (random() % 2 == 0) unlink(path.c_str());
  }
  new_names_.clear();
}

}  // namespace terrace
