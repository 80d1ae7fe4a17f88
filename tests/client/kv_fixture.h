// KV for tests: a small geometry, prompts, and bytes that are a function of what they stand for, so
// that a byte from a wrong place is seen.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string_view>
#include <vector>

#include "client/terrace.h"

namespace terrace {

inline KvGeometry SmallGeometry(KvOrder order = KvOrder::kTokenMajor) {
  KvGeometry geometry;
  geometry.model_id = "test-model";
  geometry.dtype = Dtype::kF16;
  geometry.order = order;
  geometry.layers = 3;
  geometry.kv_heads = 2;
  geometry.head_dim = 8;
  geometry.v_head_dim = 4;
  geometry.rope_theta = 10000;
  return geometry;
}

inline std::vector<uint32_t> Prompt(size_t count, uint32_t seed = 1) {
  std::vector<uint32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(seed * 7919 + i * 31);
  return tokens;
}

// One head of one token.
inline std::vector<uint8_t> HeadBytes(const KvGeometry& geometry, uint32_t layer, KvPart part,
                                      uint32_t token, uint32_t head, uint32_t id) {
  const uint32_t dim = part == KvPart::kK ? geometry.head_dim : geometry.v_head_dim;
  std::vector<uint8_t> bytes(dim * DtypeBytes(geometry.dtype));
  for (uint32_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(id * 17 + layer * 101 + static_cast<uint32_t>(part) * 53 +
                                    head * 29 + token * 3 + (token >> 8) * 11 + i);
  }
  return bytes;
}

// What a part of `tokens` tokens from `begin` holds, in the geometry's order. `ids` names each
// token, so that equal positions of different prompts differ.
inline std::vector<uint8_t> PartBytes(const KvGeometry& geometry, uint32_t layer, KvPart part,
                                      absl::Span<const uint32_t> ids, uint32_t begin,
                                      uint32_t tokens) {
  std::vector<uint8_t> bytes;
  const auto add = [&](uint32_t token, uint32_t head) {
    const auto one = HeadBytes(geometry, layer, part, token, head, ids[token]);
    bytes.insert(bytes.end(), one.begin(), one.end());
  };
  if (geometry.order == KvOrder::kTokenMajor) {
    for (uint32_t t = begin; t < begin + tokens; ++t) {
      for (uint32_t h = 0; h < geometry.kv_heads; ++h) add(t, h);
    }
  } else {
    for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
      for (uint32_t t = begin; t < begin + tokens; ++t) add(t, h);
    }
  }
  return bytes;
}

inline uint64_t Counter(Client& client, std::string_view name) {
  const auto status = client.Status();
  EXPECT_TRUE(status.ok()) << status.status();
  for (const auto& [counter, value] : status->counters) {
    if (counter == name) return value;
  }
  ADD_FAILURE() << "no counter " << name;
  return 0;
}

// High enough that the NVMe tier writes it at once: see tiers/nvme/admission.h.
inline constexpr uint32_t kPromptCostUs = 10'000'000;

// Writes every needed chunk and commits.
inline CommitReport StoreAll(Client& client, const Model& model, absl::Span<const uint32_t> tokens,
                             std::string_view extra = {}, uint32_t cost_us = kPromptCostUs) {
  CommitReport report;
  auto store = client.BeginStore(model, tokens, extra, cost_us);
  EXPECT_TRUE(store.ok()) << store.status();
  if (!store.ok()) return report;
  for (size_t i = 0; i < store->chunks().size(); ++i) {
    const StoreChunk& chunk = store->chunks()[i];
    if (!chunk.needed) continue;
    for (uint32_t layer = 0; layer < model.geometry.layers; ++layer) {
      for (const KvPart part : {KvPart::kK, KvPart::kV}) {
        const auto bytes =
            PartBytes(model.geometry, layer, part, tokens, chunk.token_begin, chunk.token_count);
        const absl::Status written =
            store->Write(i, PartIndex(layer, part), bytes.data(), bytes.size());
        EXPECT_TRUE(written.ok()) << written;
      }
    }
  }
  const absl::Status committed = store->Commit(&report);
  EXPECT_TRUE(committed.ok()) << committed;
  return report;
}

// The matched tokens of every usable chunk hold what `tokens` stored, and only those are claimed.
inline void ExpectHolds(Lease& lease, const Model& model, absl::Span<const uint32_t> tokens) {
  const KvGeometry& geometry = model.geometry;
  for (size_t i = 0; i < lease.usable_chunks(); ++i) {
    const ChunkMatch& chunk = lease.chunks()[i];
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      for (const KvPart part : {KvPart::kK, KvPart::kV}) {
        const auto held = lease.Part(i, layer, part);
        ASSERT_TRUE(held.ok()) << held.status();
        for (uint32_t t = 0; t < chunk.matched_tokens; ++t) {
          for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
            const uint32_t token = chunk.token_begin + t;
            const auto want = HeadBytes(geometry, layer, part, token, h, tokens[token]);
            const size_t index = geometry.order == KvOrder::kTokenMajor
                                     ? t * geometry.kv_heads + h
                                     : size_t{h} * chunk.object_tokens + t;
            ASSERT_LE((index + 1) * want.size(), held->size());
            ASSERT_EQ(std::memcmp(held->data() + index * want.size(), want.data(), want.size()), 0)
                << "chunk " << i << " layer " << layer << " token " << token << " head " << h;
          }
        }
      }
    }
  }
}

// Matches, acquires, waits, checks every byte. Returns the usable tokens.
inline uint32_t LoadAll(Client& client, const Model& model, absl::Span<const uint32_t> tokens,
                        std::string_view extra = {}) {
  const auto match = client.MatchPrefix(model, tokens, extra);
  EXPECT_TRUE(match.ok()) << match.status();
  if (!match.ok() || match->chunks.empty()) return 0;
  auto lease = client.Acquire(model, *match);
  EXPECT_TRUE(lease.ok()) << lease.status();
  if (!lease.ok()) return 0;
  const absl::Status ready = lease->WaitAll(60000);
  EXPECT_TRUE(ready.ok()) << ready;
  ExpectHolds(*lease, model, tokens);
  EXPECT_EQ(lease->usable_tokens(), match->matched_tokens);
  return lease->usable_tokens();
}

}  // namespace terrace
