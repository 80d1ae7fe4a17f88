// libterrace: the C++ client of terraced. The one public header.
//
//   auto client = Client::Connect({});                             // or
//   Client::Spawn({.directory}) auto model = client->RegisterKv(geometry); auto match =
//   client->MatchPrefix(*model, tokens);              // longest stored prefix auto lease =
//   client->Acquire(*model, *match);                  // pins it, starts loading it for (layer ...)
//   { lease->WaitLayer(layer); lease->Part(chunk, layer, KvPart::kK); ... } auto store =
//   client->BeginStore(*model, tokens, {}, cost_us);  // what is not there yet store->Write(chunk,
//   PartIndex(layer, KvPart::kK), bytes, size); ... store->Commit(&report);
//
// Payload bytes live in memory shared with the daemon and are never copied by a load. Everything is
// a value or a unique_ptr; leases and stores keep the mapping they use alive, also past the Client.
//
// Statuses of every call that talks to the daemon, besides those a method lists: Unavailable when
// the daemon is gone or Close() was called (dead for good: make a new Client), ResourceExhausted
// when a limit or the memory is reached, InvalidArgument naming the argument.
//
// Threads: Client is safe to use from any number of threads. A Lease or StoreOperation is used by
// one thread at a time, except where a method says otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/kv_geometry.h"
#include "config/object_key.h"
#include "config/object_layout.h"
#include "transport/messages.h"

namespace terrace {

class ClientCore;  // the session and its mappings; private

inline constexpr uint32_t kChunkTokens = 256;
inline constexpr uint32_t kNoTimeout = 0xffffffffu;

enum class KvPart : uint8_t { kK = 0, kV = 1 };
// Index of a layer's part in a payload; part 0 is the identity part.
inline constexpr uint32_t PartIndex(uint32_t layer, KvPart part) {
  return 1 + 2 * layer + static_cast<uint32_t>(part);
}

struct ClientOptions {
  // Empty: $TERRACE_SOCKET, else $XDG_RUNTIME_DIR/terrace/terraced.sock, else
  // /run/terrace/terraced.sock.
  std::string socket_path;
  std::string tenant;  // empty: the only tenant of this uid
  std::string client_name = "libterrace";
  uint32_t call_timeout_ms = 5000;  // of one call to the daemon; past it the client is dead
  uint32_t room_timeout_ms = 5000;  // how long a store or load waits for host memory
};

// A private daemon with its socket, configuration, log and store under one directory.
struct SpawnOptions {
  std::string directory;  // created if absent, mode 0700
  // Empty: $TERRACED, else `terraced` next to libterrace.so, next to the program, or in $PATH.
  std::string daemon_path;
  uint64_t host_capacity_bytes = 0;  // 0: the daemon's default
  uint64_t nvme_capacity_bytes = 0;  // 0: the daemon's default
  VerifyMode verify = VerifyMode::kCrossing;
  uint32_t start_timeout_ms = 30000;
  ClientOptions client;  // socket_path is ignored
};

// A registered KV geometry. A plain value, good for the Client that made it.
struct Model {
  KvGeometry geometry;
  ObjectLayout layout;
  uint32_t layout_id = 0;
  ObjectKey root;
};

// One stored object that covers tokens [token_begin, token_begin + matched_tokens).
struct ChunkMatch {
  ObjectKey key;
  uint32_t token_begin = 0;
  uint32_t matched_tokens = 0;  // leading tokens of the object that are ours; multiple of 16
  uint32_t object_tokens = 0;   // of the whole object: the token axis of its parts has this length
  uint32_t object_grains = 0;
  ExtentInfo info;
  // The chain value at our last matched grain: what the object must hold there. Checked when the
  // lease waits, because the daemon matches tails by 32-bit filters.
  ObjectKey expected_grain;
};

struct PrefixMatch {
  std::vector<ChunkMatch> chunks;  // in token order, without gaps from token 0
  uint32_t matched_tokens = 0;
};

// Blocks: objects under an engine's own keys, whose parts an engine defines.
struct BlockLayout {
  // Everything that decides what the bytes mean: model, revision, dtype, tokens of a block, memory
  // layout, attention backend, rank. Two texts that differ share nothing.
  std::string space;
  std::vector<uint64_t> part_bytes;  // of each part, in the order they become readable; 1 .. 439
};

// A piece of an engine's memory that belongs to a part of a block.
struct BlockPiece {
  uint32_t block = 0;  // index in the store or lease
  uint32_t part = 1;   // 1 .. the number of part_bytes
  uint64_t address = 0;
  uint64_t bytes = 0;
};

// Pins objects in host memory, or with AcquireOptions::memory = kDevice in the device's, until
// released, destroyed, or out of time. Move-only.
//
// Views from Part() are valid until then; after copying from one under a short time limit, ask
// expired() again: false means that what was copied is right.
class Lease {
 public:
  Lease();
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  ~Lease();

  // What was acquired. May be less than was asked for: an object can be evicted in between, and
  // chunks behind a missing one are of no use.
  absl::Span<const ChunkMatch> chunks() const;
  // Leading chunks and tokens that are still good. Shrinks when a wait finds that a load failed or
  // that a partial match was none.
  uint32_t usable_chunks() const;
  uint32_t usable_tokens() const;

  // Blocks until the layer's K and V are there in every usable chunk (WaitAll: every layer;
  // WaitPart: one part of one chunk). A partial match that proves false is dropped silently: look
  // at usable_tokens(). DataLoss "... ready up to layer N": a load failed; its chunk and those
  // behind it are no longer usable, and the next wait covers the rest. DeadlineExceeded: timeout_ms
  // passed. NotFound: the lease ran out. Unavailable: the daemon died, told within about 50 ms.
  absl::Status WaitLayer(uint32_t layer, uint32_t timeout_ms = kNoTimeout);
  absl::Status WaitAll(uint32_t timeout_ms = kNoTimeout);
  absl::Status WaitPart(size_t chunk, uint32_t part, uint32_t timeout_ms = kNoTimeout);
  // As WaitLayer, for the parts up to and with `part`: of blocks, whose parts are no layers' K and
  // V.
  absl::Status WaitParts(uint32_t part, uint32_t timeout_ms = kNoTimeout);
  // Leading parts of a chunk that are there now, the identity part included. Any thread.
  uint32_t ready_parts(size_t chunk) const;

  // The bytes of a part, in place; never waits. Unavailable: not there yet (wait for it). DataLoss:
  // its checksum is wrong (checked once, when the daemon says verify = always). NotFound: the lease
  // ran out. The view covers object_tokens tokens, also for a partial match.
  absl::StatusOr<absl::Span<const uint8_t>> Part(size_t chunk, uint32_t layer, KvPart part);
  absl::StatusOr<absl::Span<const uint8_t>> RawPart(size_t chunk, uint32_t part);
  // Copies the first `tokens` tokens of one layer's K or V, out of all chunks, into an engine's
  // memory: `rows` runs of tokens (as many as KV heads when head-major, 1 when token-major) that
  // begin `stride_bytes` apart. The counterpart of StoreOperation::WriteRows. Statuses of Part();
  // InvalidArgument: tokens > usable_tokens(), rows or stride that do not fit the layout.
  absl::Status ReadRows(uint32_t layer, KvPart part, uint32_t tokens, void* destination,
                        size_t rows, size_t stride_bytes);

  // Copies parts of blocks out to where pieces are. Pieces of one part follow each other and take
  // its bytes from the first on, all of them or less. On up to `threads` threads; 0: as many as
  // pay. Statuses of RawPart(), after which the pieces may hold anything; InvalidArgument naming
  // the piece.
  absl::Status Scatter(absl::Span<const BlockPiece> pieces, uint32_t threads = 1);

  uint64_t deadline_us() const;  // CLOCK_MONOTONIC
  bool expired() const;          // or released. Any thread.
  // Moves the deadline to now + ttl_ms (0: default). NotFound: too late.
  absl::Status Renew(uint32_t ttl_ms = 0);
  // Sent, not waited for. Again: does nothing.
  absl::Status Release();

 private:
  friend class Client;
  struct State;
  explicit Lease(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct StoreChunk {
  ObjectKey key;
  uint32_t token_begin = 0;  // of a block: its index among the keys of the call
  uint32_t token_count = 0;
  bool needed = false;  // write it; false: already there, or there was no room
};

struct CommitReport {
  uint32_t stored = 0;   // chunks published now
  uint32_t already = 0;  // were there, or someone else is storing them
  uint32_t failed = 0;   // no room, not written, or refused
  uint64_t stored_bytes = 0;
  absl::Status why;  // of the first failed chunk
};

// Chunks being written. Nothing of it is visible before Commit(); what is not committed is given
// back when the object goes. Calls for different chunks may run in parallel.
class StoreOperation {
 public:
  StoreOperation();
  StoreOperation(StoreOperation&& other) noexcept;
  StoreOperation& operator=(StoreOperation&& other) noexcept;
  ~StoreOperation();

  absl::Span<const StoreChunk> chunks() const;
  uint32_t needed_chunks() const;
  // Length of a part of one chunk, bytes.
  absl::StatusOr<uint64_t> PartBytes(size_t chunk, uint32_t part) const;

  // Writes a whole part (copy and checksum in one pass). `bytes` must be its length. Writing it
  // again replaces it.
  absl::Status Write(size_t chunk, uint32_t part, const void* source, size_t bytes);
  // The same from `rows` rows of `row_bytes` that lie `stride_bytes` apart: a chunk's tokens out of
  // [heads, all tokens, head_dim], for example. rows * row_bytes must be the part's length.
  absl::Status WriteRows(size_t chunk, uint32_t part, const void* source, size_t rows,
                         size_t row_bytes, size_t stride_bytes);
  // Writes parts of blocks out of pieces, copy and checksum in one pass. Pieces of one part follow
  // each other and together have its length. On up to `threads` threads; 0: as many as pay. Those
  // of blocks that are not needed are skipped. InvalidArgument naming the piece.
  absl::Status Gather(absl::Span<const BlockPiece> pieces, uint32_t threads = 1);
  // The part itself, for writing in place; counts as written, its checksum is taken by Commit().
  absl::StatusOr<absl::Span<uint8_t>> Buffer(size_t chunk, uint32_t part);

  // Publishes every needed chunk that is complete and gives the others back. InvalidArgument naming
  // the first part that was not written; the report is filled and complete chunks are published in
  // that case too. FailedPrecondition: committed or aborted before.
  absl::Status Commit(CommitReport* report = nullptr);
  void Abort();

 private:
  friend class Client;
  struct State;
  explicit StoreOperation(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Where a block stands in its prompt. Nothing is found or loaded by it: it decides what leaves
// memory first, and what the block is taken to be worth.
struct BlockPlace {
  // The block before it, which leaves memory after it; zero: none, or not known. One that is not
  // stored is as good as none.
  ObjectKey parent;
  uint32_t position = kUnknownPosition;  // blocks before it
};

// Views are borrowed for the call.
struct BlockStoreOptions {
  uint64_t cost_us = 0;                 // what making all of them took; 0: unknown
  absl::Span<const BlockPlace> places;  // one a key, or none
};

// What an engine expects to read, for Client::Hint, and then acquires in one call: that is how it
// is known that the request has started. Views are borrowed for the call.
struct ExpectedRead {
  HintKind kind = HintKind::kQueue;
  // Names the request among those of this Client. Said again with the same kind it takes the place
  // of what was said; what several kinds say of one request counts together.
  uint64_t request_id = 0;
  uint32_t order = 0;        // place in the waiting queue, 0 is next; places may be shared
  uint64_t eta_us = 0;       // until its first byte is wanted, from now; 0: unknown
  uint64_t deadline_us = 0;  // after which nobody wants it any more, from now; 0: none
  float confidence = 1;      // 0 .. 1 that it is wanted at all
  // A prompt, whose chunks are wanted from the first on; `extra` as of MatchPrefix.
  absl::Span<const uint32_t> tokens;
  std::string_view extra;
  // Or objects, in order of need.
  absl::Span<const ObjectKey> keys;
};

struct HintReport {
  uint32_t accepted = 0;  // hints that were taken whole
  uint32_t refused = 0;   // others
  uint64_t keys = 0;      // objects expected from now on, stored already or not
  absl::Status why;       // of the first refused one: see HintResult
};

class Client {
 public:
  // As Connection::Open, with the path in the message.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(ClientOptions options);
  // Starts a private daemon over the directory, or joins the one that serves it already. The Client
  // that started it ends it (SIGTERM, which makes everything committed durable) when it closes.
  // NotFound: no terraced binary. InvalidArgument: the directory's path is too long for a socket.
  // FailedPrecondition: the daemon ended at start; the message has the end of its log.
  static absl::StatusOr<std::unique_ptr<Client>> Spawn(SpawnOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Ends the session at once: leases and unfinished stores of this Client are gone. Ends a daemon
  // that this Client spawned, waiting for it. The destructor calls it.
  void Close();
  bool alive() const;
  const Welcome& welcome() const;  // its descriptors are -1
  const std::string& socket_path() const;
  int32_t spawned_pid() const;  // 0: this Client spawned no daemon
  // Readable whenever a load of this session made progress, for event loops: read 8 bytes from it,
  // then look at ready_parts() of every lease waited for. Borrowed.
  int ready_event_fd() const;

  absl::StatusOr<Model> RegisterKv(const KvGeometry& geometry);

  // The longest stored prefix that is expected to be loaded sooner than computed, by the costs
  // given to BeginStore. `extra` separates caches of equal tokens (image digests, a request's
  // salt).
  absl::StatusOr<PrefixMatch> MatchPrefix(const Model& model, absl::Span<const uint32_t> tokens,
                                          std::string_view extra = {});
  // NotFound: nothing of it is left. FailedPrecondition: stored with another layout, or memory is
  // kDevice and the daemon has no HBM tier.
  absl::StatusOr<Lease> Acquire(const Model& model, const PrefixMatch& match,
                                const AcquireOptions& options = {});
  // Every full chunk of 256 tokens, and a last one of the whole grains that remain. `cost_us` is
  // what computing all of `tokens` took (0: unknown); chunks get their share. Waits for room up to
  // room_timeout_ms; chunks without room are not needed and count as failed.
  absl::StatusOr<StoreOperation> BeginStore(const Model& model, absl::Span<const uint32_t> tokens,
                                            std::string_view extra = {}, uint64_t cost_us = 0);

  // Says what will be read and when, so that what is wanted soon stays in host memory, or is
  // brought there while the engine does something else. Blocks for one short call to the daemon,
  // never for a disk; promises nothing, and being wrong costs nobody a byte. Ends with the session:
  // hint anew after a reconnect. Keys that are not stored yet count once they are. Of a read with
  // more keys than a call may carry (welcome().max_keys_per_call) the leading ones are hinted, and
  // it counts as refused. InvalidArgument naming the field, of the whole call; what one read met is
  // in the report. Without a model: `keys` only, of any layout that somebody has registered.
  absl::StatusOr<HintReport> Hint(const Model& model, absl::Span<const ExpectedRead> reads);
  absl::StatusOr<HintReport> Hint(absl::Span<const ExpectedRead> reads);
  // The requests are gone. Those whose objects were acquired need not be withdrawn, nor harms it.
  absl::StatusOr<HintReport> Withdraw(absl::Span<const uint64_t> request_ids);

  // Blocks. A Model from RegisterBlocks is good for the calls with Blocks in their name, for Hint
  // by keys, and its leases and stores for what names parts by number: chunk i is the i-th key.
  // InvalidArgument: part_bytes.
  absl::StatusOr<Model> RegisterBlocks(const BlockLayout& layout);
  // The key of an engine's own name for a block. `salt` separates caches of equal names.
  ObjectKey BlockKey(const Model& model, std::string_view salt, std::string_view name) const;
  // One answer a key, in any number; tier kNone where it is not there. A snapshot, without side
  // effects but being counted. Where keys build on each other, what bears kFlagRecompute is
  // expected to be there sooner when it is made again, with all behind it in the leading run;
  // judged for max_keys_per_call keys at a time.
  absl::StatusOr<std::vector<ExtentInfo>> FindBlocks(const Model& model,
                                                     absl::Span<const ObjectKey> keys);
  // Leases the leading run of keys that is there, and starts loading them in order. NotFound: the
  // first is not there. As Acquire otherwise.
  absl::StatusOr<Lease> AcquireBlocks(const Model& model, absl::Span<const ObjectKey> keys,
                                      const AcquireOptions& options = {});
  // Room for those that are not there yet and that nobody is storing. As BeginStore otherwise, but
  // that each block stands for itself: one without room takes no other along, nor does one whose
  // parent is not there. InvalidArgument: options.places of another length than `keys`, or with a
  // block as its own parent.
  absl::StatusOr<StoreOperation> BeginBlocks(const Model& model, absl::Span<const ObjectKey> keys,
                                             const BlockStoreOptions& options = {});

  // Opaque objects, for tests and load generators. Put: AlreadyExists; no bytes are
  // InvalidArgument. Get: NotFound; the bytes are RawPart(0, 1) of the lease.
  ObjectKey KeyFor(std::string_view name) const;
  absl::Status Put(const ObjectKey& key, absl::Span<const uint8_t> bytes);
  absl::StatusOr<Lease> Get(const ObjectKey& key, const AcquireOptions& options = {});

  // Operators.
  absl::StatusOr<StatusReply> Status();
  absl::StatusOr<ListReply> List(uint64_t cursor, uint32_t limit);
  absl::StatusOr<ObjectInfo> Show(const ObjectKey& key);
  absl::Status Remove(const ObjectKey& key);
  absl::Status Pin(const ObjectKey& key, bool pinned);
  // Waits until nothing committed is left to write. DeadlineExceeded says how much is.
  absl::Status Flush(uint32_t timeout_ms = kNoTimeout,
                     const std::function<void(const FlushReply&)>& progress = nullptr);
  // Reads everything back and checks it; sums of all steps (next_cursor 0). Blocks for long.
  absl::StatusOr<VerifyReply> Verify(
      const std::function<void(const VerifyReply&)>& progress = nullptr);

 private:
  explicit Client(std::shared_ptr<ClientCore> core);
  absl::StatusOr<Model> OpaqueModel(uint64_t bytes);
  absl::StatusOr<HintReport> HintFor(const Model* model, absl::Span<const ExpectedRead> reads);

  std::shared_ptr<ClientCore> core_;
};

}  // namespace terrace
