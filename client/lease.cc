// Lease: waiting for the ready words of leased objects and handing out their bytes. Every read of a
// word or of bytes asks about the deadline afterwards: past it the daemon may give both to others.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/block_copy.h"
#include "client/core.h"
#include "kernels/checksum.h"

namespace terrace {
namespace {

// Between looks at the socket: how late a daemon's death may be noticed.
constexpr uint64_t kWaitSliceUs = 50'000;

struct LeasedChunk {
  const std::atomic<uint32_t>* word = nullptr;
  const uint8_t* payload = nullptr;
  std::vector<PartSpan> parts;
  std::vector<uint32_t> part_crcs;    // to check on first use; empty: the daemon has checked
  std::vector<uint8_t> part_checked;  // one a part
  bool identity_checked = false;
};

uint32_t CompleteLayers(uint32_t ready_parts) {
  return ready_parts == 0 ? 0 : (ready_parts - 1) / 2;
}

// The word is in memory shared between processes, hence not FUTEX_PRIVATE.
void FutexWait(const std::atomic<uint32_t>* word, uint32_t seen, uint64_t timeout_us) {
  const timespec timeout{static_cast<time_t>(timeout_us / 1'000'000),
                         static_cast<long>(timeout_us % 1'000'000 * 1000)};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

// The first object of a match that was not to be had; ends the lease's prefix.
struct Miss {
  absl::Status status;
  uint32_t retry_after_ms = 0;  // not 0: it may be had after that time
};

}  // namespace

struct Lease::State {
  explicit State(std::shared_ptr<ClientCore> the_core) : core(std::move(the_core)) {}

  absl::Status Acquire(const Model& model, const PrefixMatch& match, const AcquireOptions& options,
                       Miss& miss);
  absl::StatusOr<const uint8_t*> PayloadAt(const AcquireResult& result, uint64_t bytes);
  absl::Status Add(const Model& model, const ChunkMatch& match, const AcquireResult& result);
  absl::Status WaitAll(uint32_t parts, uint32_t timeout_ms);
  absl::Status WaitChunk(size_t chunk, uint32_t parts, uint64_t end_us);
  absl::StatusOr<bool> IdentityMatches(size_t chunk);
  absl::Status CheckPart(size_t chunk, uint32_t part);
  absl::Status CheckChunkIndex(size_t chunk) const;
  bool Expired() const { return released || MonotonicNowUs() >= deadline_us; }
  absl::Status Release();

  std::shared_ptr<ClientCore> core;
  std::vector<ChunkMatch> matches;
  std::vector<LeasedChunk> chunks;
  std::vector<uint64_t> lease_ids;  // one a call to the daemon
  LeaseMemory memory = LeaseMemory::kHost;
  std::atomic<uint64_t> deadline_us{~uint64_t{0}};
  std::atomic<bool> released{false};
  std::atomic<uint32_t> usable{0};
};

absl::StatusOr<const uint8_t*> Lease::State::PayloadAt(const AcquireResult& result,
                                                       uint64_t bytes) {
  if (memory == LeaseMemory::kDevice) return core->OnDevice(result.offset, bytes);
  return core->At(result.offset, bytes);
}

absl::Status Lease::State::Add(const Model& model, const ChunkMatch& match,
                               const AcquireResult& result) {
  if (result.token_count != match.object_tokens || result.grain_count != match.object_grains ||
      !model.layout.CheckObject(result.token_count, result.grain_count).ok()) {
    return absl::NotFoundError(absl::StrCat(match.key.ToHex(), " was replaced by another object"));
  }
  const auto payload =
      PayloadAt(result, model.layout.PayloadBytes(result.token_count, result.grain_count));
  if (!payload.ok()) return payload.status();
  const auto word = core->Word(result.board_slot);
  if (!word.ok()) return word.status();
  LeasedChunk chunk;
  chunk.word = *word;
  chunk.payload = *payload;
  chunk.parts = model.layout.Parts(result.token_count, result.grain_count);
  if (result.part_crcs.size() == chunk.parts.size()) chunk.part_crcs = result.part_crcs;
  chunk.part_checked.resize(chunk.parts.size(), chunk.part_crcs.empty() ? 1 : 0);
  chunks.push_back(std::move(chunk));
  matches.push_back(match);
  usable = static_cast<uint32_t>(chunks.size());
  return absl::OkStatus();
}

absl::Status Lease::State::CheckChunkIndex(size_t chunk) const {
  if (chunk >= chunks.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk: ", chunk, "; the lease has ", chunks.size()));
  }
  if (chunk >= usable) {
    return absl::NotFoundError(absl::StrCat("chunk ", chunk,
                                            " is not usable: its load failed or "
                                            "its tokens are not the prompt's"));
  }
  if (Expired()) return absl::NotFoundError("the lease was released or ran out of time");
  if (core->closed()) return absl::UnavailableError("the client is closed");
  return absl::OkStatus();
}

// Leaves when `parts` leading parts are there. `end_us` is when the caller's patience ends.
absl::Status Lease::State::WaitChunk(size_t chunk, uint32_t parts, uint64_t end_us) {
  const LeasedChunk& leased = chunks[chunk];
  while (true) {
    const uint32_t word = leased.word->load(std::memory_order_acquire);
    const uint64_t now_us = MonotonicNowUs();
    if (released || now_us >= deadline_us) {
      return absl::NotFoundError("the lease was released or ran out of time");
    }
    const ReadyState state = ReadyWordState(word);
    const uint32_t ready = ReadyWordParts(word);
    if (state != ReadyState::kFree && ready >= parts) return absl::OkStatus();
    if (state == ReadyState::kFailed) {
      return absl::DataLossError(absl::StrCat(
          matches[chunk].key.ToHex(), " (chunk ", chunk, "): its load failed with ", ready, " of ",
          leased.parts.size(), " parts there, ready up to layer ", CompleteLayers(ready)));
    }
    if (!core->PeerAlive()) {
      return absl::UnavailableError(absl::StrCat("the daemon is gone; chunk ", chunk,
                                                 " is ready up to layer ", CompleteLayers(ready)));
    }
    if (state == ReadyState::kFree) return absl::NotFoundError("the lease ran out of time");
    if (now_us >= end_us) {
      return absl::DeadlineExceededError(
          absl::StrCat("chunk ", chunk, " is ready up to layer ", CompleteLayers(ready)));
    }
    FutexWait(leased.word, word, std::min({kWaitSliceUs, end_us - now_us, deadline_us - now_us}));
  }
}

absl::Status Lease::State::CheckPart(size_t chunk, uint32_t part) {
  LeasedChunk& leased = chunks[chunk];
  if (leased.part_checked[part] != 0) return absl::OkStatus();
  const PartSpan& span = leased.parts[part];
  const uint32_t crc = kernels::Crc32c(leased.payload + span.offset, span.bytes);
  if (Expired()) return absl::NotFoundError("the lease was released or ran out of time");
  if (crc != leased.part_crcs[part]) {
    return absl::DataLossError(absl::StrCat(matches[chunk].key.ToHex(), " (chunk ", chunk,
                                            "): checksum of part ", part, " in memory is ",
                                            absl::Hex(crc, absl::kZeroPad8), ", stored was ",
                                            absl::Hex(leased.part_crcs[part], absl::kZeroPad8)));
  }
  leased.part_checked[part] = 1;
  return absl::OkStatus();
}

// Whether the object holds our tokens, by the whole key of our last grain. Needs part 0.
absl::StatusOr<bool> Lease::State::IdentityMatches(size_t chunk) {
  const ChunkMatch& match = matches[chunk];
  LeasedChunk& leased = chunks[chunk];
  if (leased.identity_checked || match.object_grains == 0) return true;
  const uint32_t grains = match.matched_tokens / kGrainTokens;
  if (grains == match.object_grains) {
    leased.identity_checked = match.key == match.expected_grain;
    return leased.identity_checked;
  }
  absl::Status checked = CheckPart(chunk, 0);
  if (!checked.ok()) return checked;
  const uint8_t* held =
      leased.payload + leased.parts[0].offset + uint64_t{grains - 1} * sizeof(ObjectKey);
  const bool same = std::memcmp(held, match.expected_grain.bytes.data(), sizeof(ObjectKey)) == 0;
  if (Expired()) return absl::NotFoundError("the lease was released or ran out of time");
  leased.identity_checked = same;
  return same;
}

absl::Status Lease::State::WaitAll(uint32_t parts, uint32_t timeout_ms) {
  const uint64_t end_us =
      timeout_ms == kNoTimeout ? ~uint64_t{0} : MonotonicNowUs() + uint64_t{timeout_ms} * 1000;
  for (uint32_t i = 0; i < usable; ++i) {
    absl::Status status = WaitChunk(i, parts, end_us);
    if (status.ok()) {
      const auto matches_prompt = IdentityMatches(i);
      status = matches_prompt.status();
      if (status.ok() && !*matches_prompt) {  // a miss that the daemon could not see
        usable = i;
        return absl::OkStatus();
      }
    }
    if (absl::IsDataLoss(status)) usable = i;
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Lease::State::Release() {
  if (released.exchange(true) || lease_ids.empty() || !core->PeerAlive()) return absl::OkStatus();
  return core->connection().Release(lease_ids);
}

// --- Client -------------------------------------------------------------------------------------

// Leases the match's objects up to the first miss.
absl::Status Lease::State::Acquire(const Model& model, const PrefixMatch& match,
                                   const AcquireOptions& options, Miss& miss) {
  memory = options.memory;
  if (memory == LeaseMemory::kDevice) {
    // A daemon that knows nothing of devices would lend host memory instead.
    const auto there = core->OnDevice(0, 0);
    if (!there.ok()) return there.status();
  }
  const size_t batch = core->welcome().max_keys_per_call;
  for (size_t begin = 0; begin < match.chunks.size() && miss.status.ok(); begin += batch) {
    const size_t count = std::min(batch, match.chunks.size() - begin);
    std::vector<ObjectKey> keys;
    for (size_t i = begin; i < begin + count; ++i) keys.push_back(match.chunks[i].key);
    const auto reply = core->connection().Acquire(model.layout_id, keys, options);
    if (!reply.ok()) return reply.status();
    if (reply->lease_id != 0) {
      lease_ids.push_back(reply->lease_id);
      deadline_us = std::min<uint64_t>(deadline_us, reply->deadline_us);
    }
    for (size_t i = 0; i < count && miss.status.ok(); ++i) {
      const AcquireResult& result = reply->results[i];
      miss = {result.status, result.retry_after_ms};
      if (miss.status.ok()) miss.status = Add(model, match.chunks[begin + i], result);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Lease> Client::Acquire(const Model& model, const PrefixMatch& match,
                                      const AcquireOptions& options) {
  if (match.chunks.empty()) return absl::NotFoundError("acquire: the match has no chunks");
  const RoomWait wait(core_->options());
  while (true) {
    // From here on leaving the scope releases what was acquired. While waiting for room nothing is
    // held, so that two readers cannot wait for each other; reads that have begun go on.
    Lease lease(std::make_unique<Lease::State>(core_));
    Miss miss;
    absl::Status status = lease.state_->Acquire(model, match, options, miss);
    if (!status.ok()) return status;
    if (!miss.status.ok() && miss.retry_after_ms > 0) {
      lease.Release().IgnoreError();
      if (wait.Sleep(miss.retry_after_ms)) continue;
      return miss.status;
    }
    if (lease.usable_chunks() > 0) return lease;
    // An object whose readers are leaving after a failed read is a miss, not a dead daemon.
    if (absl::IsUnavailable(miss.status)) return absl::NotFoundError(miss.status.message());
    return miss.status;
  }
}

// --- Lease --------------------------------------------------------------------------------------

Lease::Lease() = default;
Lease::Lease(std::unique_ptr<State> state) : state_(std::move(state)) {}
Lease::Lease(Lease&& other) noexcept = default;

Lease& Lease::operator=(Lease&& other) noexcept {
  Lease ended(std::move(other));
  std::swap(state_, ended.state_);  // what this held is released on return
  return *this;
}

Lease::~Lease() { Release().IgnoreError(); }

absl::Status Lease::Release() { return state_ == nullptr ? absl::OkStatus() : state_->Release(); }

absl::Span<const ChunkMatch> Lease::chunks() const {
  if (state_ == nullptr) return {};
  return state_->matches;
}

uint32_t Lease::usable_chunks() const { return state_ == nullptr ? 0 : state_->usable.load(); }

uint32_t Lease::usable_tokens() const {
  const uint32_t chunks = usable_chunks();
  if (chunks == 0) return 0;
  const ChunkMatch& last = state_->matches[chunks - 1];
  return last.token_begin + last.matched_tokens;
}

absl::Status Lease::WaitLayer(uint32_t layer, uint32_t timeout_ms) {
  if (state_ == nullptr) return absl::NotFoundError("the lease is empty");
  const size_t parts = state_->chunks.front().parts.size();
  if (layer >= (parts - 1) / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: ", layer, "; the layout has ", (parts - 1) / 2));
  }
  return state_->WaitAll(PartIndex(layer, KvPart::kV) + 1, timeout_ms);
}

absl::Status Lease::WaitAll(uint32_t timeout_ms) {
  if (state_ == nullptr) return absl::NotFoundError("the lease is empty");
  return state_->WaitAll(static_cast<uint32_t>(state_->chunks.front().parts.size()), timeout_ms);
}

absl::Status Lease::WaitParts(uint32_t part, uint32_t timeout_ms) {
  if (state_ == nullptr) return absl::NotFoundError("the lease is empty");
  const size_t parts = state_->chunks.front().parts.size();
  if (part >= parts) {
    return absl::InvalidArgumentError(absl::StrCat("part: ", part, "; the layout has ", parts));
  }
  return state_->WaitAll(part + 1, timeout_ms);
}

absl::Status Lease::WaitPart(size_t chunk, uint32_t part, uint32_t timeout_ms) {
  if (state_ == nullptr) return absl::NotFoundError("the lease is empty");
  absl::Status valid = state_->CheckChunkIndex(chunk);
  if (!valid.ok()) return valid;
  if (part >= state_->chunks[chunk].parts.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("part: ", part, "; the layout has ", state_->chunks[chunk].parts.size()));
  }
  const uint64_t end_us =
      timeout_ms == kNoTimeout ? ~uint64_t{0} : MonotonicNowUs() + uint64_t{timeout_ms} * 1000;
  absl::Status status = state_->WaitChunk(chunk, part + 1, end_us);
  if (absl::IsDataLoss(status)) state_->usable = static_cast<uint32_t>(chunk);
  return status;
}

uint32_t Lease::ready_parts(size_t chunk) const {
  if (state_ == nullptr || chunk >= state_->chunks.size()) return 0;
  const uint32_t word = state_->chunks[chunk].word->load(std::memory_order_acquire);
  if (state_->Expired() || ReadyWordState(word) == ReadyState::kFree) return 0;
  return ReadyWordParts(word);
}

absl::StatusOr<absl::Span<const uint8_t>> Lease::Part(size_t chunk, uint32_t layer, KvPart part) {
  if (layer >= kMaxParts) {
    return absl::InvalidArgumentError(absl::StrCat("layer: ", layer, "; no layout has that many"));
  }
  return RawPart(chunk, PartIndex(layer, part));
}

absl::StatusOr<absl::Span<const uint8_t>> Lease::RawPart(size_t chunk, uint32_t part) {
  if (state_ == nullptr) return absl::NotFoundError("the lease is empty");
  absl::Status valid = state_->CheckChunkIndex(chunk);
  if (!valid.ok()) return valid;
  const LeasedChunk& leased = state_->chunks[chunk];
  if (part >= leased.parts.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("part: ", part, "; the layout has ", leased.parts.size()));
  }
  const uint32_t ready = ready_parts(chunk);
  if (ready <= part) {
    if (state_->Expired()) return absl::NotFoundError("the lease ran out of time");
    return absl::UnavailableError(
        absl::StrCat("part ", part, " of chunk ", chunk, " is not there yet: ", ready, " are"));
  }
  const auto identity = state_->IdentityMatches(chunk);
  if (!identity.ok()) return identity.status();
  if (!*identity) {
    state_->usable = static_cast<uint32_t>(chunk);
    return absl::NotFoundError(absl::StrCat("chunk ", chunk, ": its tokens are not the prompt's"));
  }
  absl::Status checked = state_->CheckPart(chunk, part);
  if (absl::IsDataLoss(checked)) state_->usable = static_cast<uint32_t>(chunk);
  if (!checked.ok()) return checked;
  return absl::MakeConstSpan(leased.payload + leased.parts[part].offset, leased.parts[part].bytes);
}

absl::Status Lease::ReadRows(uint32_t layer, KvPart kv, uint32_t tokens, void* destination,
                             size_t rows, size_t stride_bytes) {
  if (tokens > usable_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens: ", tokens, "; the lease has ", usable_tokens()));
  }
  if (destination == nullptr) return absl::InvalidArgumentError("destination: NULL");
  for (size_t i = 0; i < usable_chunks() && chunks()[i].token_begin < tokens; ++i) {
    const ChunkMatch& chunk = chunks()[i];
    const auto part = Part(i, layer, kv);
    if (!part.ok()) return part.status();
    const size_t values = rows * chunk.object_tokens;  // a run holds one a token
    const size_t token_bytes = values == 0 ? 0 : part->size() / values;
    if (token_bytes == 0 || part->size() % values != 0 || stride_bytes < tokens * token_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("rows: ", rows, " of stride ", stride_bytes,
                                                     " for ", tokens, " tokens; the part has ",
                                                     part->size(), " bytes"));
    }
    const size_t count = std::min(chunk.matched_tokens, tokens - chunk.token_begin);
    const size_t held_stride = chunk.object_tokens * token_bytes;
    auto* to = static_cast<uint8_t*>(destination) + chunk.token_begin * token_bytes;
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(to + row * stride_bytes, part->data() + row * held_stride, count * token_bytes);
    }
  }
  if (expired()) return absl::NotFoundError("the lease was released or ran out of time");
  return absl::OkStatus();
}

absl::Status Lease::Scatter(absl::Span<const BlockPiece> pieces, uint32_t threads) {
  const absl::Status copied =
      CopyParts(pieces, threads, [this](absl::Span<const BlockPiece> of_part) -> absl::Status {
        const auto part = RawPart(of_part.front().block, of_part.front().part);
        if (!part.ok()) return part.status();
        if (absl::Status fits = CheckLength(of_part, part->size(), true); !fits.ok()) return fits;
        const uint8_t* source = part->data();
        for (const BlockPiece& piece : of_part) {
          std::memcpy(reinterpret_cast<void*>(piece.address), source, piece.bytes);
          source += piece.bytes;
        }
        return absl::OkStatus();
      });
  if (!copied.ok()) return copied;
  if (expired()) return absl::NotFoundError("the lease was released or ran out of time");
  return absl::OkStatus();
}

uint64_t Lease::deadline_us() const { return state_ == nullptr ? 0 : state_->deadline_us.load(); }

bool Lease::expired() const { return state_ == nullptr || state_->Expired(); }

absl::Status Lease::Renew(uint32_t ttl_ms) {
  if (expired()) return absl::NotFoundError("the lease was released or ran out of time");
  uint64_t deadline_us = ~uint64_t{0};
  for (const uint64_t id : state_->lease_ids) {
    const auto renewed = state_->core->connection().Renew(id, ttl_ms);
    if (!renewed.ok()) return renewed.status();
    deadline_us = std::min(deadline_us, *renewed);
  }
  state_->deadline_us = deadline_us;
  return absl::OkStatus();
}

}  // namespace terrace
