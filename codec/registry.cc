#include "codec/registry.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "codec/channel_codec.h"
#include "codec/nibble_codec.h"
#include "codec/profile_codec.h"
#include "codec/raw_codec.h"
#include "codec/zstd_codec.h"
#include "config/text.h"

namespace terrace::codec {
namespace {

constexpr CodecEntry kCodecs[] = {
    {CodecId::kRaw, "raw", "the values as they are", false, EncodeRaw, OpenRaw},
    {CodecId::kLosslessFast, "lossless-fast",
     "exact; bfloat16 in 12 bits, near the speed of a copy", false, EncodeNibbles, OpenNibbles},
    {CodecId::kLossless, "lossless", "exact; the smallest, with tables made from the chunk", false,
     EncodeChannels, OpenChannels},
    {CodecId::kProfile, "profile", "lossy, with a profile calibrated for the model", true,
     EncodeWithProfile, OpenProfile},
    {CodecId::kZstd, "zstd", "exact; Zstandard over bytes of like place, for any dtype", false,
     EncodeZstd, OpenZstd},
};

std::string Known() {
  return absl::StrJoin(kCodecs, ", ", [](std::string* out, const CodecEntry& entry) {
    absl::StrAppend(out, static_cast<int>(entry.id), " (", Sv(entry.name), ")");
  });
}

}  // namespace

std::span<const CodecEntry> Codecs() { return kCodecs; }

absl::StatusOr<const CodecEntry*> FindCodec(CodecId id) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.id == id) return &entry;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codec ", static_cast<int>(id), ": must be one of ", Known()));
}

absl::StatusOr<const CodecEntry*> FindCodec(std::string_view name) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.name == name) return &entry;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codec \"", Sv(name), "\": must be one of ", Known()));
}

}  // namespace terrace::codec
