// A prefix cache in C++: store the KV of a prompt, find it again for a prompt that begins alike,
// and read it in place. Starts a private daemon under the directory named on the command line:
//
//   cpp_prefix_cache /var/tmp/my-cache
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "client/terrace.h"

using terrace::KvPart;

namespace {

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::exit(1);
}
void OrExit(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Stands for the engine: the KV of one token in one layer, [kv_heads, head_dim] of fp32.
float Compute(uint32_t token, uint32_t layer, KvPart part) {
  return static_cast<float>(token * 100 + layer * 2 + static_cast<uint32_t>(part));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: cpp_prefix_cache DIRECTORY\n");
    return 2;
  }
  terrace::SpawnOptions options;
  options.directory = argv[1];
  options.host_capacity_bytes = 64 << 20;
  options.nvme_capacity_bytes = 256 << 20;
  const auto client = OrExit(terrace::Client::Spawn(options));

  // What the KV of this model looks like. Anything that changes its bytes is part of its identity.
  terrace::KvGeometry geometry;
  geometry.model_id = "example-model";
  geometry.dtype = terrace::Dtype::kF32;
  geometry.layers = 4;
  geometry.kv_heads = 2;
  geometry.head_dim = geometry.v_head_dim = 16;
  const terrace::Model model = OrExit(client->RegisterKv(geometry));
  const size_t token_floats = geometry.kv_heads * geometry.head_dim;

  std::vector<uint32_t> prompt(1000);
  std::iota(prompt.begin(), prompt.end(), 0);

  // Store. Chunks that are there already (from the last run) are not needed.
  auto store = OrExit(client->BeginStore(model, prompt));
  for (size_t i = 0; i < store.chunks().size(); ++i) {
    const terrace::StoreChunk& chunk = store.chunks()[i];
    if (!chunk.needed) continue;
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      for (const KvPart part : {KvPart::kK, KvPart::kV}) {
        std::vector<float> values;
        for (uint32_t t = 0; t < chunk.token_count; ++t) {
          values.insert(values.end(), token_floats,
                        Compute(prompt[chunk.token_begin + t], layer, part));
        }
        OrExit(store.Write(i, terrace::PartIndex(layer, part), values.data(),
                           values.size() * sizeof(float)));
      }
    }
  }
  terrace::CommitReport report;
  OrExit(store.Commit(&report));
  std::printf("stored %u chunks, %u were there\n", report.stored, report.already);

  // Load for another prompt that shares 700 tokens: 2 chunks of 256, and 176 tokens of the third.
  std::vector<uint32_t> question = prompt;
  for (size_t i = 700; i < question.size(); ++i) question[i] += 50000;
  const terrace::PrefixMatch match = OrExit(client->MatchPrefix(model, question));
  terrace::Lease lease = OrExit(client->Acquire(model, match));
  uint64_t wrong = 0;
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    OrExit(lease.WaitLayer(layer));  // later layers may still be on their way
    for (size_t i = 0; i < lease.usable_chunks(); ++i) {
      const terrace::ChunkMatch& chunk = lease.chunks()[i];
      for (const KvPart part : {KvPart::kK, KvPart::kV}) {
        const auto bytes = OrExit(lease.Part(i, layer, part));
        const auto* values = reinterpret_cast<const float*>(bytes.data());
        for (uint32_t t = 0; t < chunk.matched_tokens; ++t) {
          const float want = Compute(question[chunk.token_begin + t], layer, part);
          for (size_t f = 0; f < token_floats; ++f) wrong += values[t * token_floats + f] != want;
        }
      }
    }
  }
  std::printf("restored %u of %zu tokens, %llu wrong values\n", lease.usable_tokens(),
              question.size(), static_cast<unsigned long long>(wrong));
  return wrong == 0 && lease.usable_tokens() == 688 ? 0 : 1;
}
