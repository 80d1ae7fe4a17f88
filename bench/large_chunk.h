// The 64 MiB objects that the store and load suites move through libterrace.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "client/terrace.h"

namespace terrace::bench {

// 32 layers of 16 heads of 128 two-byte values: a chunk of 256 tokens has 64 parts of 1 MiB.
inline KvGeometry LargeGeometry() {
  KvGeometry geometry;
  geometry.model_id = "terrace-bench";
  geometry.dtype = Dtype::kBf16;
  geometry.layers = 32;
  geometry.kv_heads = 16;
  geometry.head_dim = 128;
  geometry.v_head_dim = 128;
  return geometry;
}
inline constexpr uint64_t kLargeBytes = uint64_t{64} << 20;

// A prompt of some chunks that begins as no other number does.
inline std::vector<uint32_t> LargePrompt(uint32_t number, uint32_t chunks = 1) {
  std::vector<uint32_t> tokens(size_t{chunks} * kChunkTokens);
  std::iota(tokens.begin(), tokens.end(), number * kChunkTokens);
  return tokens;
}

inline std::vector<uint8_t> LargePayload() {
  std::vector<uint8_t> payload(kLargeBytes);
  std::mt19937_64 random(20240607);
  for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random());
  return payload;
}

// Stores `payload` (kLargeBytes, every part in turn) as each of the prompt's chunks. AlreadyExists
// when one is there.
inline absl::Status StoreLarge(Client& client, const Model& model,
                               const std::vector<uint32_t>& prompt,
                               const std::vector<uint8_t>& payload) {
  auto store = client.BeginStore(model, prompt);
  if (!store.ok()) return store.status();
  if (store->needed_chunks() != store->chunks().size()) {
    return absl::AlreadyExistsError("a chunk is there, or no room");
  }
  for (size_t chunk = 0; chunk < store->chunks().size(); ++chunk) {
    const uint8_t* source = payload.data();
    for (uint32_t part = 1; part < model.layout.PartCount(); ++part) {
      const auto bytes = store->PartBytes(chunk, part);
      if (!bytes.ok()) return bytes.status();
      const absl::Status written = store->Write(chunk, part, source, *bytes);
      if (!written.ok()) return written;
      source += *bytes;
    }
  }
  return store->Commit();
}

}  // namespace terrace::bench
