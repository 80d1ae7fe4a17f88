// The code of the GPU's kernels, run on the CPU lane after lane.
#include <memory>
#include <new>

#include "kernels/tile_nibbles.cuh"
#include "kernels/tile_rows.cuh"
#include "kernels/tile_stream.cuh"
#include "kernels/tile_values.cuh"
#include "kernels/tile_writer.cuh"
#include "kernels/turn.h"
#include "tests/support/gpu_codec_suite.h"
#include "tests/support/gpu_nibble_suite.h"
#include "tests/support/host_warp.h"

namespace terrace::testing {
namespace {

template <bool kDownwards>
class Emulation {
 public:
  void* Allocate(size_t bytes) {
    constexpr std::align_val_t kAlignment{256};
    auto* memory = static_cast<uint8_t*>(::operator new[](bytes, kAlignment));
    std::memset(memory, 0, bytes);
    blocks_.emplace_back(memory, [](uint8_t* at) { ::operator delete[](at, kAlignment); });
    return memory;
  }
  void FillTurns(const uint64_t* frequencies, size_t pairs, uint64_t first, size_t positions,
                 kernels::Turn* out) {
    for (size_t i = 0; i < positions * pairs; ++i) {
      out[i] = kernels::TurnOfPhase((first + i / pairs) * frequencies[i % pairs]);
    }
  }
  // As the kernels of kernels/cuda_codec.cu, with a block of one warp.
  void Decode(const kernels::DecodeLaunch& launch) {
    HostWarp warp(kDownwards);
    for (uint32_t i = 0; i < launch.count; ++i) {
      auto* scratch = reinterpret_cast<uint32_t*>(
          launch.scratch + i * kernels::DecodeScratchBytes(launch.scratch_coefficients));
      const kernels::DecodeJob& job = launch.jobs[i];
      auto places = std::make_unique<kernels::TilePlaces>();
      launch.status[i] = kernels::DecodeTile(warp, launch.tables, job,
                                             kernels::BytesOf(launch.format), scratch, *places);
      if (launch.status[i] != kernels::TileStatus::kDone) continue;
      for (uint32_t item = 0; item < kernels::ItemsOf(job, *places); ++item) {
        kernels::WriteItem(warp, job, launch.format, *places, scratch, item);
      }
    }
  }
  void Encode(const kernels::EncodeLaunch& launch) {
    HostWarp warp(kDownwards);
    for (uint32_t i = 0; i < launch.count; ++i) {
      const kernels::EncodeJob& job = launch.jobs[i];
      const kernels::EncodeRows rows(
          job, launch.scratch + i * kernels::EncodeScratchBytes(launch.layer_channels));
      auto state = std::make_unique<kernels::EncodeState>();
      for (uint32_t item = 0; item < kernels::LoadItems(job); ++item) {
        kernels::LoadValues(warp, job, launch.format, rows, item);
      }
      for (uint32_t group = 0; group < kernels::GroupsOf(job); ++group) {
        kernels::ChooseLevels(warp, job, rows, *state, group);
      }
      for (uint32_t part = 0; part < 2; ++part) {
        for (uint32_t item = 0; item < kernels::QuantiseItems(job, part); ++item) {
          kernels::Quantise(warp, job, rows, *state, part, item);
        }
        launch.sizes[2 * i + part] = kernels::WriteTile(
            warp, launch.tables, job, kernels::BytesOf(launch.format), rows, *state, part);
      }
    }
  }
  // As the kernels of kernels/cuda_nibbles.cu.
  void DecodeNibbles(const kernels::NibbleLaunch& launch) {
    HostWarp warp(kDownwards);
    for (uint32_t i = 0; i < launch.count; ++i) {
      const kernels::NibbleJob& job = launch.jobs[i];
      kernels::NibbleState state{};
      kernels::TileStatus& status = launch.status[i] = kernels::CheckNibbles(job);
      const bool good = status == kernels::TileStatus::kDone;
      const bool nibbles = good && job.tile[0] == kernels::kNibbleForm;
      if (nibbles) {
        ForSegments([&](uint32_t s) { kernels::CountEscapes(warp, job, state, s); });
        status = kernels::CheckEscapes(job, state);
      }
      if (status != kernels::TileStatus::kDone) continue;
      ForSegments([&](uint32_t s) {
        nibbles ? kernels::UnpackSegment(warp, job, state, s)
                : kernels::CopyRawValues(warp, job, s, false);
      });
    }
  }
  void EncodeNibbles(const kernels::NibbleLaunch& launch) {
    HostWarp warp(kDownwards);
    for (uint32_t i = 0; i < launch.count; ++i) {
      const kernels::NibbleJob& job = launch.jobs[i];
      kernels::NibbleState state{};
      if (job.bf16) {
        ForSegments([&](uint32_t s) { kernels::SampleExponents(warp, job, state, s); });
      }
      ForSegments([&](uint32_t s) { kernels::RankExponents(warp, state, s); });
      if (job.bf16) {
        ForSegments([&](uint32_t s) { kernels::CountUncoded(warp, job, state, s); });
      }
      ForSegments([&](uint32_t s) { launch.sizes[i] = kernels::PackSegment(warp, job, state, s); });
    }
  }

 private:
  template <typename Step>
  static void ForSegments(Step step) {
    for (uint32_t i = 0; i < kernels::kSegments; ++i) {
      step(kDownwards ? kernels::kSegments - 1 - i : i);
    }
  }

  std::vector<std::unique_ptr<uint8_t[], void (*)(uint8_t*)>> blocks_;
};

using Emulations = ::testing::Types<Emulation<false>, Emulation<true>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Emulated, GpuCodecSuite, Emulations);
INSTANTIATE_TYPED_TEST_SUITE_P(Emulated, GpuNibbleSuite, Emulations);

}  // namespace
}  // namespace terrace::testing
