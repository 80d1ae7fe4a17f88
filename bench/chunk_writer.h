// Stores tiny chunks over a bare Connection: reserve, copy with checksum into the shared segment,
// commit. For suites that need many objects and no tokens; the others go through libterrace. One
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/kv_geometry.h"
#include "kernels/shared_memory.h"
#include "transport/connection.h"

namespace terrace::bench {

inline constexpr uint32_t kTinyTokens = 256;
inline constexpr uint32_t kChunkGrains = kTinyTokens / kGrainTokens;

// One layer, one head of 7 one-byte values: K and V of 1792 bytes each and 480 (512 aligned) bytes
// of identity fill one 4 KiB page exactly, the smallest extent there is.
KvGeometry TinyGeometry();

// The grain keys of one chunk, the last of which is the object's key, and its parent.
struct ChunkKeys {
  ObjectKey parent;
  std::vector<ObjectKey> grains;
};

class ChunkWriter {
 public:
  // Takes the connection's welcome.
  static absl::StatusOr<std::unique_ptr<ChunkWriter>> Create(Connection& connection,
                                                             const KvGeometry& geometry);
  // Stores full chunks, all with the same K and V; waits while the daemon says that waiting helps,
  // 30 s at most. At most max_keys_per_call chunks.
  absl::Status Store(absl::Span<const ChunkKeys> chunks);
  // `count` chunks in a row from `parent` on, with random keys.
  std::vector<ChunkKeys> RandomChain(const ObjectKey& parent, uint32_t count);

  uint32_t layout_id() const { return layout_id_; }

 private:
  explicit ChunkWriter(Connection& connection) : connection_(connection) {}
  absl::StatusOr<std::vector<ReserveResult>> ReserveAll(absl::Span<const ReserveItem> items);
  CommitItem Write(const ChunkKeys& chunk, const ReserveResult& reservation);

  Connection& connection_;
  ObjectLayout layout_;
  uint32_t layout_id_ = 0;
  kernels::SharedMemory segment_;
  std::vector<uint8_t> payload_;
  std::mt19937_64 random_{20240607};
};

}  // namespace terrace::bench
