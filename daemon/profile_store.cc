#include "daemon/profile_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxProfileBytes = uint64_t{4} << 30;

std::vector<std::string> ProfileFiles(const std::string& directory) {
  std::vector<std::string> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".tkvp" && it->is_regular_file(error)) {
      files.push_back(it->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

absl::StatusOr<std::vector<uint8_t>> ReadFile(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return absl::UnavailableError(error.message());
  if (bytes > kMaxProfileBytes) return absl::InvalidArgumentError("longer than any profile");
  std::vector<uint8_t> content(bytes);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(bytes));
  if (!file) return absl::UnavailableError(std::strerror(errno));
  return content;
}

// Whole or not at all, and there after a power cut.
absl::Status WriteFile(const std::string& path, std::span<const uint8_t> bytes) {
  const std::string fresh = path + ".new";
  const int fd = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool good = fd >= 0;
  for (size_t at = 0; good && at < bytes.size();) {
    const ssize_t wrote = write(fd, bytes.data() + at, bytes.size() - at);
    good = wrote > 0 || (wrote < 0 && errno == EINTR);
    at += wrote > 0 ? static_cast<size_t>(wrote) : 0;
  }
  good = good && fsync(fd) == 0 && rename(fresh.c_str(), path.c_str()) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (good) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(error)));
}

}  // namespace

const char* FormName(const codec::Profile& profile) {
  switch (profile.transform()) {
    case codec::Transform::kLayer:
      return "archive";
    case codec::Transform::kHead:
      return "balanced";
    default:
      return profile.rotary_dim() != 0 ? "fast" : "fastest";
  }
}

absl::StatusOr<StoredProfile> ParseStored(std::vector<uint8_t> bytes) {
  auto profile = codec::Profile::Parse(bytes);
  if (!profile.ok()) return profile.status();
  return StoredProfile{*std::move(profile),
                       std::make_shared<const std::vector<uint8_t>>(std::move(bytes))};
}

ProfileStore::ProfileStore(const std::string& operators_directory, std::string own_directory)
    : own_directory_(std::move(own_directory)) {
  ReadDirectory(operators_directory);
  if (operators_directory != own_directory_) ReadDirectory(own_directory_);
}

void ProfileStore::ReadDirectory(const std::string& directory) {
  for (const std::string& path : ProfileFiles(directory)) {
    absl::StatusOr<std::vector<uint8_t>> bytes = ReadFile(path);
    absl::Status status = bytes.status();
    if (status.ok()) {
      absl::StatusOr<StoredProfile> stored = ParseStored(*std::move(bytes));
      status = stored.status();
      if (status.ok()) Add(*std::move(stored));
    }
    if (!status.ok()) spdlog::warn("{} was not taken up: {}", path, status.ToString());
  }
}

void ProfileStore::Add(StoredProfile stored) {
  if (Find(stored.profile->hash()) == nullptr) profiles_.push_back(std::move(stored));
}

std::shared_ptr<const codec::Profile> ProfileStore::Find(const Fingerprint& hash) const {
  for (const StoredProfile& known : profiles_) {
    if (known.profile->hash() == hash) return known.profile;
  }
  return nullptr;
}

std::vector<StoredProfile> ProfileStore::For(const KvGeometry& geometry) const {
  std::vector<StoredProfile> found;
  for (const StoredProfile& known : profiles_) {
    const codec::Profile& profile = *known.profile;
    const bool fits = (profile.model_id().empty() || profile.model_id() == geometry.model_id) &&
                      geometry.lora.empty() && profile.layers() == geometry.layers &&
                      profile.heads() == geometry.kv_heads &&
                      profile.k_dim() == geometry.head_dim &&
                      profile.v_dim() == geometry.v_head_dim;
    const bool new_form = std::none_of(found.begin(), found.end(), [&](const auto& other) {
      return std::strcmp(FormName(*other.profile), FormName(profile)) == 0;
    });
    if (fits && new_form) found.push_back(known);
  }
  return found;
}

absl::Status KeepProfile(const std::string& directory, const StoredProfile& stored) {
  const Fingerprint& hash = stored.profile->hash();
  const std::string path = absl::StrCat(
      directory, "/",
      absl::BytesToHexString({reinterpret_cast<const char*>(hash.data()), hash.size()}), ".tkvp");
  std::error_code error;
  if (std::filesystem::file_size(path, error) == stored.bytes->size() && !error) {
    return absl::OkStatus();
  }
  std::filesystem::create_directories(directory, error);
  return WriteFile(path, *stored.bytes);
}

}  // namespace terrace
