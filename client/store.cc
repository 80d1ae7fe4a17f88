// StoreOperation: chunks being written, from their reservation to commit or abort.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/block_copy.h"
#include "client/core.h"
#include "client/prefix_keys.h"
#include "kernels/checksum.h"

namespace terrace {
namespace {

enum class PartState : uint8_t { kEmpty, kChecked, kInPlace };

struct WrittenChunk {
  ObjectKey parent;
  uint32_t position = kUnknownPosition;  // as ReserveItem::position
  absl::Span<const ObjectKey> grains;
  bool already = false;
  absl::Status refused;         // why there is no reservation
  uint64_t reservation_id = 0;  // 0: none, or no longer
  uint8_t* payload = nullptr;
  std::vector<PartSpan> parts;
  std::vector<uint32_t> crcs;
  std::vector<PartState> states;
};

absl::Status CheckPlaces(absl::Span<const ObjectKey> keys, absl::Span<const BlockPlace> places) {
  if (!places.empty() && places.size() != keys.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "places: ", places.size(), "; expected none, or one for each of ", keys.size(), " keys"));
  }
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].parent != keys[i]) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("places[", i, "].parent: the block itself; expected the one before it"));
  }
  return absl::OkStatus();
}

}  // namespace

struct StoreOperation::State {
  State(std::shared_ptr<ClientCore> the_core, const Model& the_model)
      : core(std::move(the_core)), model(the_model) {}

  void PlanPrefix(PrefixKeys the_keys, uint64_t cost_us);
  void PlanBlocks(absl::Span<const ObjectKey> block_keys, const BlockStoreOptions& options);
  absl::Status SkipPresent();
  absl::Status Reserve();
  absl::Status ReserveBatch(absl::Span<const size_t> wanted, std::vector<size_t>& again,
                            uint32_t& retry_after_ms);
  absl::Status Begin(size_t chunk, const ReserveResult& result);
  bool MayGetRoom(absl::Span<const size_t> again) const;
  absl::Status GiveUp();
  absl::StatusOr<WrittenChunk*> Writable(size_t chunk, uint32_t part);
  std::optional<uint32_t> UnwrittenPart(const WrittenChunk& chunk) const;
  CommitItem Seal(WrittenChunk& chunk) const;
  absl::Status CommitItems(absl::Span<const CommitItem> items, absl::Span<const size_t> owners,
                           CommitReport& report);
  void Abort();

  std::shared_ptr<ClientCore> core;
  Model model;
  std::optional<PrefixKeys> keys;  // of a prompt, whose chunks build on each other
  std::vector<StoreChunk> infos;
  std::vector<WrittenChunk> chunks;
  std::vector<uint32_t> costs_us;
  bool done = false;
};

uint32_t Share(double cost_us, double share) {
  return static_cast<uint32_t>(std::min(cost_us * share, 4294967295.0));
}

void StoreOperation::State::PlanPrefix(PrefixKeys the_keys, uint64_t cost_us) {
  keys = std::move(the_keys);
  double tokens = 0;
  for (size_t i = 0; i < keys->chunks(); ++i) {
    tokens += static_cast<double>(keys->GrainsOfChunk(i).size() * kGrainTokens);
  }
  for (size_t i = 0; i < keys->chunks(); ++i) {
    WrittenChunk chunk;
    chunk.parent = keys->ParentOf(i);
    chunk.grains = keys->GrainsOfChunk(i);
    const auto count = static_cast<uint32_t>(chunk.grains.size() * kGrainTokens);
    chunk.position = static_cast<uint32_t>(i * kChunkTokens);
    infos.push_back({keys->ChunkKey(i), chunk.position, count, false});
    costs_us.push_back(Share(static_cast<double>(cost_us), count / tokens));
    chunks.push_back(std::move(chunk));
  }
}

void StoreOperation::State::PlanBlocks(absl::Span<const ObjectKey> block_keys,
                                       const BlockStoreOptions& options) {
  const auto count = static_cast<double>(std::max<size_t>(block_keys.size(), 1));
  for (const ObjectKey& key : block_keys) {
    infos.push_back({key, static_cast<uint32_t>(infos.size()), 1, false});
  }
  costs_us.resize(infos.size(), Share(static_cast<double>(options.cost_us), 1 / count));
  chunks.resize(infos.size());
  for (size_t i = 0; i < options.places.size(); ++i) {
    chunks[i].parent = options.places[i].parent;
    chunks[i].position = options.places[i].position;
  }
}

absl::Status StoreOperation::State::SkipPresent() {
  std::vector<ExtentInfo> extents;
  absl::Status found =
      LookupPrefix(*core, model.layout_id, keys->ChunkKeys(keys->chunks()), extents);
  for (size_t i = 0; i < extents.size(); ++i) chunks[i].already = true;
  return found;
}

// Takes a reservation into use: its memory, and the identity part that the client fills.
absl::Status StoreOperation::State::Begin(size_t index, const ReserveResult& result) {
  WrittenChunk& chunk = chunks[index];
  chunk.reservation_id = result.reservation_id;
  const auto tokens = infos[index].token_count;
  const auto grains = static_cast<uint32_t>(chunk.grains.size());
  const auto payload = core->WritableAt(result.offset, model.layout.PayloadBytes(tokens, grains));
  if (!payload.ok()) return payload.status();
  chunk.payload = *payload;
  chunk.parts = model.layout.Parts(tokens, grains);
  chunk.crcs.resize(chunk.parts.size());
  chunk.states.resize(chunk.parts.size(), PartState::kEmpty);
  infos[index].needed = true;
  return absl::OkStatus();
}

absl::Status StoreOperation::State::ReserveBatch(absl::Span<const size_t> wanted,
                                                 std::vector<size_t>& again,
                                                 uint32_t& retry_after_ms) {
  std::vector<ReserveItem> items;
  for (const size_t i : wanted) {
    items.push_back({infos[i].key, chunks[i].parent, infos[i].token_count,
                     static_cast<uint32_t>(chunks[i].grains.size()), costs_us[i],
                     chunks[i].position});
  }
  const auto results = core->connection().Reserve(model.layout_id, items);
  if (!results.ok()) return results.status();
  absl::Status status;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const ReserveResult& result = (*results)[i];
    WrittenChunk& chunk = chunks[wanted[i]];
    chunk.refused = absl::OkStatus();
    if (result.status.ok()) {
      absl::Status begun = Begin(wanted[i], result);
      if (status.ok()) status = begun;
    } else if (absl::IsAlreadyExists(result.status)) {
      chunk.already = true;
    } else {
      chunk.refused = result.status;
      if (absl::IsResourceExhausted(result.status) && result.retry_after_ms > 0) {
        again.push_back(wanted[i]);
        retry_after_ms = std::max(retry_after_ms, result.retry_after_ms);
      }
    }
  }
  return status;
}

// Whether waiting helps: when the first chunk of a prompt without room is one that may get some, or
// any block.
bool StoreOperation::State::MayGetRoom(absl::Span<const size_t> again) const {
  if (again.empty() || !keys) return !again.empty();
  const auto refused = std::find_if(chunks.begin(), chunks.end(),
                                    [](const WrittenChunk& chunk) { return !chunk.refused.ok(); });
  return static_cast<size_t>(refused - chunks.begin()) == again.front();
}

// What has no room stays without. Nothing finds a prompt's chunk behind one that is missing: gives
// back what was reserved there.
absl::Status StoreOperation::State::GiveUp() {
  if (!keys) return absl::OkStatus();
  std::vector<uint64_t> given_back;
  absl::Status why;  // of the first without room
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (why.ok()) why = chunks[i].refused;
    if (why.ok() || chunks[i].already) continue;
    if (chunks[i].refused.ok()) chunks[i].refused = why;
    infos[i].needed = false;
    if (const uint64_t id = std::exchange(chunks[i].reservation_id, 0)) given_back.push_back(id);
  }
  return given_back.empty() ? absl::OkStatus() : core->connection().Abort(given_back);
}

absl::Status StoreOperation::State::Reserve() {
  const RoomWait wait(core->options());
  std::vector<size_t> wanted;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (!chunks[i].already) wanted.push_back(i);
  }
  const size_t batch = core->welcome().max_keys_per_call;
  while (!wanted.empty()) {
    std::vector<size_t> again;
    uint32_t retry_after_ms = 0;
    for (size_t begin = 0; begin < wanted.size(); begin += batch) {
      absl::Status reserved =
          ReserveBatch(absl::MakeConstSpan(wanted).subspan(begin, batch), again, retry_after_ms);
      if (!reserved.ok()) return reserved;
    }
    if (!MayGetRoom(again) || !wait.Sleep(retry_after_ms)) return GiveUp();
    wanted = std::move(again);
  }
  return absl::OkStatus();
}

absl::StatusOr<WrittenChunk*> StoreOperation::State::Writable(size_t index, uint32_t part) {
  if (done) return absl::FailedPreconditionError("the store was committed or aborted");
  if (index >= chunks.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk: ", index, "; the store has ", chunks.size()));
  }
  if (part == 0 || part >= model.layout.PartCount()) {
    return absl::InvalidArgumentError(
        absl::StrCat("part: ", part, "; expected 1 .. ", model.layout.PartCount() - 1));
  }
  if (!infos[index].needed) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk ", index, " is not needed: it is already there or had no room"));
  }
  // A session that ended gave the reservation's memory back.
  if (core->closed()) return absl::UnavailableError("the client is closed");
  return &chunks[index];
}

std::optional<uint32_t> StoreOperation::State::UnwrittenPart(const WrittenChunk& chunk) const {
  for (uint32_t part = 1; part < chunk.states.size(); ++part) {
    if (chunk.states[part] == PartState::kEmpty) return part;
  }
  return std::nullopt;
}

CommitItem StoreOperation::State::Seal(WrittenChunk& chunk) const {
  CommitItem item;
  item.reservation_id = chunk.reservation_id;
  const auto identity = chunk.grains.first(std::max<size_t>(chunk.grains.size(), 1) - 1);
  chunk.crcs[0] = kernels::CopyCrc32c(chunk.payload + chunk.parts[0].offset, identity.data(),
                                      identity.size() * sizeof(ObjectKey));
  for (uint32_t part = 1; part < chunk.parts.size(); ++part) {
    if (chunk.states[part] != PartState::kInPlace) continue;
    chunk.crcs[part] =
        kernels::Crc32c(chunk.payload + chunk.parts[part].offset, chunk.parts[part].bytes);
  }
  item.part_crcs = chunk.crcs;
  for (const ObjectKey& grain : identity) item.grain_filters.push_back(FilterOf(grain));
  return item;
}

absl::Status StoreOperation::State::CommitItems(absl::Span<const CommitItem> items,
                                                absl::Span<const size_t> owners,
                                                CommitReport& report) {
  const size_t batch = core->welcome().max_keys_per_call;
  for (size_t begin = 0; begin < items.size(); begin += batch) {
    const auto some = items.subspan(begin, batch);
    const auto results = core->connection().Commit(some);
    if (!results.ok()) return results.status();
    for (size_t i = 0; i < some.size(); ++i) {
      const size_t owner = owners[begin + i];
      chunks[owner].reservation_id = 0;
      if ((*results)[i].ok()) {
        ++report.stored;
        report.stored_bytes += model.layout.PayloadBytes(
            infos[owner].token_count, static_cast<uint32_t>(chunks[owner].grains.size()));
        continue;
      }
      ++report.failed;
      if (report.why.ok()) report.why = (*results)[i];
    }
  }
  return absl::OkStatus();
}

void StoreOperation::State::Abort() {
  done = true;
  std::vector<uint64_t> ids;
  for (WrittenChunk& chunk : chunks) {
    if (const uint64_t id = std::exchange(chunk.reservation_id, 0)) ids.push_back(id);
  }
  // A session that is over has given everything back.
  if (!ids.empty() && core->PeerAlive()) core->connection().Abort(ids).IgnoreError();
}

// --- Client -------------------------------------------------------------------------------------

absl::StatusOr<StoreOperation> Client::BeginStore(const Model& model,
                                                  absl::Span<const uint32_t> tokens,
                                                  std::string_view extra, uint64_t cost_us) {
  StoreOperation store(std::make_unique<StoreOperation::State>(core_, model));
  StoreOperation::State& state = *store.state_;
  state.PlanPrefix(PrefixKeys(core_->welcome().salt, model.root, tokens, extra), cost_us);
  absl::Status status = state.SkipPresent();
  if (status.ok()) status = state.Reserve();
  if (!status.ok()) return status;
  return store;
}

absl::StatusOr<StoreOperation> Client::BeginBlocks(const Model& model,
                                                   absl::Span<const ObjectKey> keys,
                                                   const BlockStoreOptions& options) {
  if (absl::Status valid = CheckPlaces(keys, options.places); !valid.ok()) return valid;
  StoreOperation store(std::make_unique<StoreOperation::State>(core_, model));
  store.state_->PlanBlocks(keys, options);
  absl::Status status = store.state_->Reserve();
  if (!status.ok()) return status;
  return store;
}

// --- StoreOperation -----------------------------------------------------------------------------

StoreOperation::StoreOperation() = default;
StoreOperation::StoreOperation(std::unique_ptr<State> state) : state_(std::move(state)) {}
StoreOperation::StoreOperation(StoreOperation&& other) noexcept = default;

StoreOperation& StoreOperation::operator=(StoreOperation&& other) noexcept {
  StoreOperation ended(std::move(other));
  std::swap(state_, ended.state_);  // what this held is aborted on return
  return *this;
}

StoreOperation::~StoreOperation() { Abort(); }

void StoreOperation::Abort() {
  if (state_ != nullptr && !state_->done) state_->Abort();
}

absl::Span<const StoreChunk> StoreOperation::chunks() const {
  if (state_ == nullptr) return {};
  return state_->infos;
}

uint32_t StoreOperation::needed_chunks() const {
  return static_cast<uint32_t>(std::count_if(chunks().begin(), chunks().end(),
                                             [](const StoreChunk& chunk) { return chunk.needed; }));
}

absl::StatusOr<uint64_t> StoreOperation::PartBytes(size_t chunk, uint32_t part) const {
  if (chunk >= chunks().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk: ", chunk, "; the store has ", chunks().size()));
  }
  if (part == 0 || part >= state_->model.layout.PartCount()) {
    return absl::InvalidArgumentError(
        absl::StrCat("part: ", part, "; expected 1 .. ", state_->model.layout.PartCount() - 1));
  }
  return uint64_t{state_->model.layout.part_bytes_per_token[part - 1]} *
         state_->infos[chunk].token_count;
}

absl::Status StoreOperation::Write(size_t chunk, uint32_t part, const void* source, size_t bytes) {
  return WriteRows(chunk, part, source, 1, bytes, bytes);
}

absl::Status StoreOperation::WriteRows(size_t index, uint32_t part, const void* source, size_t rows,
                                       size_t row_bytes, size_t stride_bytes) {
  if (state_ == nullptr) return absl::FailedPreconditionError("the store is empty");
  const auto chunk = state_->Writable(index, part);
  if (!chunk.ok()) return chunk.status();
  const PartSpan& span = (*chunk)->parts[part];
  if (row_bytes == 0 || rows != span.bytes / row_bytes || span.bytes % row_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("bytes: ", rows, " rows of ", row_bytes,
                                                   "; part ", part, " of chunk ", index, " has ",
                                                   span.bytes));
  }
  if (source == nullptr) return absl::InvalidArgumentError("source: NULL");
  uint8_t* destination = (*chunk)->payload + span.offset;
  const auto* row = static_cast<const uint8_t*>(source);
  uint32_t crc = 0;
  for (size_t i = 0; i < rows; ++i) {
    crc = kernels::CopyCrc32c(destination + i * row_bytes, row + i * stride_bytes, row_bytes, crc);
  }
  (*chunk)->crcs[part] = crc;
  (*chunk)->states[part] = PartState::kChecked;
  return absl::OkStatus();
}

absl::Status StoreOperation::Gather(absl::Span<const BlockPiece> pieces, uint32_t threads) {
  if (state_ == nullptr) return absl::FailedPreconditionError("the store is empty");
  return CopyParts(pieces, threads, [this](absl::Span<const BlockPiece> of_part) -> absl::Status {
    const auto [index, part] = std::pair{of_part.front().block, of_part.front().part};
    if (index < state_->infos.size() && !state_->infos[index].needed) return absl::OkStatus();
    const auto chunk = state_->Writable(index, part);
    if (!chunk.ok()) return chunk.status();
    const PartSpan& span = (*chunk)->parts[part];
    if (absl::Status fits = CheckLength(of_part, span.bytes, false); !fits.ok()) return fits;
    uint8_t* destination = (*chunk)->payload + span.offset;
    uint32_t crc = 0;
    for (const BlockPiece& piece : of_part) {
      const auto* source = reinterpret_cast<const uint8_t*>(piece.address);
      crc = kernels::CopyCrc32c(destination, source, piece.bytes, crc);
      destination += piece.bytes;
    }
    (*chunk)->crcs[part] = crc;
    (*chunk)->states[part] = PartState::kChecked;
    return absl::OkStatus();
  });
}

absl::StatusOr<absl::Span<uint8_t>> StoreOperation::Buffer(size_t index, uint32_t part) {
  if (state_ == nullptr) return absl::FailedPreconditionError("the store is empty");
  const auto chunk = state_->Writable(index, part);
  if (!chunk.ok()) return chunk.status();
  (*chunk)->states[part] = PartState::kInPlace;
  const PartSpan& span = (*chunk)->parts[part];
  return absl::MakeSpan((*chunk)->payload + span.offset, span.bytes);
}

absl::Status StoreOperation::Commit(CommitReport* report) {
  CommitReport counts;
  absl::Status status;
  if (state_ == nullptr || state_->done) {
    status = absl::FailedPreconditionError("the store was committed or aborted");
  } else {
    absl::Status unwritten;
    std::vector<CommitItem> items;
    std::vector<size_t> owners;
    for (size_t i = 0; i < state_->chunks.size(); ++i) {
      WrittenChunk& chunk = state_->chunks[i];
      counts.already += chunk.already ? 1 : 0;
      if (chunk.already) continue;
      absl::Status why = chunk.refused;
      if (const auto part = state_->UnwrittenPart(chunk); why.ok() && part) {
        why = absl::InvalidArgumentError(
            absl::StrCat("chunk ", i, ": part ", *part, " was not written"));
        if (unwritten.ok()) unwritten = why;
      }
      if (why.ok()) {
        items.push_back(state_->Seal(chunk));
        owners.push_back(i);
        continue;
      }
      ++counts.failed;
      if (counts.why.ok()) counts.why = why;
    }
    status = state_->CommitItems(items, owners, counts);
    if (status.ok()) status = unwritten;
    state_->Abort();
  }
  if (report != nullptr) *report = counts;
  return status;
}

}  // namespace terrace
