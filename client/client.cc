// Client: connecting, models, prefixes and the operators' calls.
#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/core.h"
#include "client/prefix_keys.h"
#include "client/terrace.h"

namespace terrace {
namespace {

constexpr auto kShortestWait = std::chrono::microseconds(50);
constexpr auto kLongestWait = std::chrono::microseconds(20000);

}  // namespace

Client::Client(std::shared_ptr<ClientCore> core) : core_(std::move(core)) {}

Client::~Client() { Close(); }

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  auto core = ClientCore::Open(std::move(options));
  if (!core.ok()) return core.status();
  return std::unique_ptr<Client>(new Client(*std::move(core)));
}

void Client::Close() { core_->Close(); }
bool Client::alive() const { return core_->PeerAlive(); }
const Welcome& Client::welcome() const { return core_->welcome(); }
const std::string& Client::socket_path() const { return core_->options().socket_path; }
int32_t Client::spawned_pid() const { return core_->spawned_pid(); }
int Client::ready_event_fd() const { return core_->ready_event_fd(); }

absl::StatusOr<Model> Client::RegisterKv(const KvGeometry& geometry) {
  absl::Status valid = geometry.Validate();
  if (!valid.ok()) return valid;
  Model model;
  model.geometry = geometry;
  model.layout = geometry.Layout();
  const auto layout_id = core_->connection().RegisterLayout(model.layout, &geometry);
  if (!layout_id.ok()) return layout_id.status();
  model.layout_id = *layout_id;
  model.root = RootKey(core_->welcome().salt, model.layout.fingerprint);
  return model;
}

absl::StatusOr<PrefixMatch> Client::MatchPrefix(const Model& model,
                                                absl::Span<const uint32_t> tokens,
                                                std::string_view extra) {
  const PrefixKeys keys(core_->welcome().salt, model.root, tokens, extra);
  std::vector<ExtentInfo> extents;
  absl::Status found =
      LookupPrefix(*core_, model.layout_id, keys.ChunkKeys(keys.full_chunks()), extents);
  if (!found.ok()) return found;
  const auto slower = std::find_if(extents.begin(), extents.end(), [](const ExtentInfo& extent) {
    return (extent.flags & kFlagRecompute) != 0;
  });
  const bool complete = slower == extents.end();
  extents.erase(slower, extents.end());
  PrefixMatch match;
  for (size_t i = 0; i < extents.size(); ++i) {
    const ObjectKey& key = keys.ChunkKey(i);
    match.chunks.push_back({key, static_cast<uint32_t>(i * kChunkTokens), kChunkTokens,
                            kChunkTokens, kChunkGrains, extents[i], key});
  }
  match.matched_tokens = static_cast<uint32_t>(extents.size() * kChunkTokens);

  // Behind what is better computed nothing is worth having.
  if (!complete) return match;
  // One object may cover the beginning of the first chunk that is not there as a whole.
  const absl::Span<const ObjectKey> grains = keys.GrainsOfChunk(extents.size());
  if (grains.empty()) return match;
  const auto tail =
      core_->connection().MatchTail(model.layout_id, keys.ParentOf(extents.size()), grains);
  if (!tail.ok()) return tail.status();
  if (!tail->found || tail->matched_grains == 0 || (tail->info.flags & kFlagRecompute) != 0) {
    return match;
  }
  if (tail->matched_grains > std::min<size_t>(grains.size(), tail->grain_count)) {
    return absl::InternalError(
        absl::StrCat("match_tail: ", tail->matched_grains, " grains matched of ", grains.size()));
  }
  match.chunks.push_back({tail->key, match.matched_tokens, tail->matched_grains * kGrainTokens,
                          tail->info.token_count, tail->grain_count, tail->info,
                          grains[tail->matched_grains - 1]});
  match.matched_tokens += tail->matched_grains * kGrainTokens;
  return match;
}

absl::StatusOr<StatusReply> Client::Status() { return core_->connection().Status(); }

absl::StatusOr<ListReply> Client::List(uint64_t cursor, uint32_t limit) {
  return core_->connection().List(cursor, limit);
}

absl::StatusOr<ObjectInfo> Client::Show(const ObjectKey& key) {
  return core_->connection().Show(key);
}

absl::Status Client::Remove(const ObjectKey& key) { return core_->connection().Remove(key); }

absl::Status Client::Pin(const ObjectKey& key, bool pinned) {
  return core_->connection().Pin(key, pinned);
}

absl::Status Client::Flush(uint32_t timeout_ms,
                           const std::function<void(const FlushReply&)>& progress) {
  const uint64_t start_us = MonotonicNowUs();
  auto wait = kShortestWait;
  while (true) {
    const auto reply = core_->connection().Flush();
    if (!reply.ok()) return reply.status();
    if (progress) progress(*reply);
    if (reply->pending_objects == 0) return absl::OkStatus();
    if (timeout_ms != kNoTimeout && MonotonicNowUs() - start_us >= uint64_t{timeout_ms} * 1000) {
      return absl::DeadlineExceededError(
          absl::StrCat("flush: ", reply->pending_objects, " objects (", reply->pending_bytes,
                       " bytes) not durable after ", timeout_ms, " ms"));
    }
    std::this_thread::sleep_for(wait);
    wait = std::min(wait * 2, kLongestWait);
  }
}

absl::StatusOr<VerifyReply> Client::Verify(
    const std::function<void(const VerifyReply&)>& progress) {
  VerifyReply total;
  uint64_t cursor = 0;
  auto wait = kShortestWait;
  do {
    auto step = core_->connection().Verify(cursor);
    if (!step.ok()) return step.status();
    total.checked += step->checked;
    total.corrupt += step->corrupt;
    total.skipped += step->skipped;
    total.bytes += step->bytes;
    total.corrupt_keys.insert(total.corrupt_keys.end(), step->corrupt_keys.begin(),
                              step->corrupt_keys.end());
    // A step that checked nothing and did not move is waiting for the disk. The first step's cursor
    // moves from 0 to where the daemon waits, so only "checked" tells then.
    if (step->checked == 0) {
      std::this_thread::sleep_for(wait);
      wait = std::min(wait * 2, kLongestWait);
    } else {
      wait = kShortestWait;
    }
    cursor = step->next_cursor;
    if (progress) progress(total);
  } while (cursor != 0);
  return total;
}

}  // namespace terrace
