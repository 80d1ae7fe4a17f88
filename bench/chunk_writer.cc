#include "bench/chunk_writer.h"

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "kernels/checksum.h"

namespace terrace::bench {
namespace {

constexpr double kReserveTimeoutSeconds = 30;

}  // namespace

KvGeometry TinyGeometry() {
  KvGeometry geometry;
  geometry.model_id = "terrace-bench";
  geometry.dtype = Dtype::kF8E4M3;
  geometry.layers = 1;
  geometry.kv_heads = 1;
  geometry.head_dim = 7;
  geometry.v_head_dim = 7;
  return geometry;
}

absl::StatusOr<std::unique_ptr<ChunkWriter>> ChunkWriter::Create(Connection& connection,
                                                                 const KvGeometry& geometry) {
  auto writer = std::unique_ptr<ChunkWriter>(new ChunkWriter(connection));
  const Welcome welcome = connection.TakeWelcome();
  close(welcome.board_fd);
  close(welcome.ready_event_fd);
  auto segment =
      kernels::SharedMemory::Attach(welcome.segment_fd, welcome.host_capacity_bytes, true);
  if (!segment.ok()) return segment.status();
  writer->segment_ = *std::move(segment);
  writer->layout_ = geometry.Layout();
  const auto layout_id = connection.RegisterLayout(writer->layout_, &geometry);
  if (!layout_id.ok()) return layout_id.status();
  writer->layout_id_ = *layout_id;
  writer->payload_.resize(writer->layout_.PayloadBytes(kTinyTokens, kChunkGrains));
  for (uint8_t& byte : writer->payload_) byte = static_cast<uint8_t>(writer->random_());
  return writer;
}

std::vector<ChunkKeys> ChunkWriter::RandomChain(const ObjectKey& parent, uint32_t count) {
  std::vector<ChunkKeys> chunks(count);
  ObjectKey previous = parent;
  for (ChunkKeys& chunk : chunks) {
    chunk.parent = previous;
    chunk.grains.resize(kChunkGrains);
    for (ObjectKey& grain : chunk.grains) {
      for (size_t at = 0; at < grain.bytes.size(); at += 8) {
        const uint64_t word = random_();
        std::memcpy(grain.bytes.data() + at, &word, sizeof word);
      }
    }
    previous = chunk.grains.back();
  }
  return chunks;
}

absl::StatusOr<std::vector<ReserveResult>> ChunkWriter::ReserveAll(
    absl::Span<const ReserveItem> items) {
  auto results = connection_.Reserve(layout_id_, items);
  if (!results.ok()) return results.status();
  const double deadline = NowSeconds() + kReserveTimeoutSeconds;
  for (size_t i = 0; i < results->size(); ++i) {
    while (!(*results)[i].status.ok()) {
      const ReserveResult& refused = (*results)[i];
      if (refused.retry_after_ms == 0 || NowSeconds() > deadline) return refused.status;
      std::this_thread::sleep_for(std::chrono::milliseconds(refused.retry_after_ms));
      auto again = connection_.Reserve(layout_id_, items.subspan(i, 1));
      if (!again.ok()) return again.status();
      (*results)[i] = std::move(again->front());
    }
  }
  return results;
}

CommitItem ChunkWriter::Write(const ChunkKeys& chunk, const ReserveResult& reservation) {
  CommitItem item;
  item.reservation_id = reservation.reservation_id;
  for (size_t i = 0; i + 1 < kChunkGrains; ++i) {
    item.grain_filters.push_back(FilterOf(chunk.grains[i]));
  }
  uint8_t* payload = segment_.data() + reservation.offset;
  const std::vector<PartSpan> parts = layout_.Parts(kTinyTokens, kChunkGrains);
  for (size_t i = 0; i < parts.size(); ++i) {
    const void* source =
        i == 0 ? static_cast<const void*>(chunk.grains.data()) : payload_.data() + parts[i].offset;
    item.part_crcs.push_back(
        kernels::CopyCrc32c(payload + parts[i].offset, source, parts[i].bytes));
  }
  return item;
}

absl::Status ChunkWriter::Store(absl::Span<const ChunkKeys> chunks) {
  std::vector<ReserveItem> items;
  for (const ChunkKeys& chunk : chunks) {
    items.push_back({chunk.grains.back(), chunk.parent, kTinyTokens, kChunkGrains, 0});
  }
  const auto reservations = ReserveAll(items);
  if (!reservations.ok()) return reservations.status();
  std::vector<CommitItem> commits;
  for (size_t i = 0; i < chunks.size(); ++i) {
    commits.push_back(Write(chunks[i], (*reservations)[i]));
  }
  const auto committed = connection_.Commit(commits);
  if (!committed.ok()) return committed.status();
  for (const absl::Status& status : *committed) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace::bench
