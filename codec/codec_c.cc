#include "codec/codec_c.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "absl/strings/str_cat.h"
#include "codec/chunk_codec.h"
#include "codec/default_profile.h"

using terrace::codec::Encoder;
using terrace::codec::KvShape;

struct terrace_codec {
  std::shared_ptr<const Encoder> encoder;
  std::vector<uint8_t> profile;
};

namespace {

thread_local std::string last_error;

int Code(const absl::Status& status) {
  if (!status.ok()) last_error = std::string(status.message());
  return static_cast<int>(status.code());
}

// Runs body, which returns a status; what it throws (memory) becomes one.
template <typename Body>
int Guarded(Body body) {
  try {
    return Code(body());
  } catch (const std::exception& error) {
    return Code(absl::ResourceExhaustedError(error.what()));
  }
}

absl::Status Decode(const terrace_codec* codec, std::span<const uint8_t> container, uint8_t* kv,
                    size_t kv_bytes) {
  const auto decoder = terrace::codec::Decoder::Make(
      container, codec == nullptr ? nullptr : codec->encoder->profile());
  if (!decoder.ok()) return decoder.status();
  const KvShape& shape = decoder->header().shape;
  uint64_t bytes = 0;
  for (uint32_t s = 0; s < shape.Sections(); ++s) bytes += shape.SectionBytes(s);
  if (bytes != kv_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_bytes is ", kv_bytes, "; must be ", bytes, " for this container"));
  }
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    if (absl::Status status = decoder->Section(s, kv); !status.ok()) return status;
    kv += shape.SectionBytes(s);
  }
  return absl::OkStatus();
}

KvShape ShapeOf(const terrace_codec_shape& shape) {
  return {static_cast<terrace::Dtype>(shape.dtype),
          static_cast<terrace::KvOrder>(shape.order),
          shape.layers,
          shape.heads,
          shape.k_dim,
          shape.v_dim,
          shape.tokens,
          shape.position};
}

std::vector<const uint8_t*> SectionsOf(const KvShape& shape, const void* kv) {
  std::vector<const uint8_t*> sections;
  const auto* next = static_cast<const uint8_t*>(kv);
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    sections.push_back(next);
    next += shape.SectionBytes(s);
  }
  return sections;
}

// To memory of malloc, for terrace_codec_free.
absl::Status HandOver(const std::vector<uint8_t>& bytes, void** out, size_t* out_bytes) {
  *out = std::malloc(bytes.size());
  if (*out == nullptr) return absl::ResourceExhaustedError("no memory");
  std::memcpy(*out, bytes.data(), bytes.size());
  *out_bytes = bytes.size();
  return absl::OkStatus();
}

}  // namespace

int terrace_codec_open(const void* profile, size_t bytes, terrace_codec** codec) {
  return Guarded([&]() -> absl::Status {
    const auto* given = static_cast<const uint8_t*>(profile);
    auto parsed = terrace::codec::Profile::Parse({given, bytes});
    if (!parsed.ok()) return parsed.status();
    auto encoder = Encoder::Make(*std::move(parsed));
    if (!encoder.ok()) return encoder.status();
    *codec = new terrace_codec{*std::move(encoder), {given, given + bytes}};
    return absl::OkStatus();
  });
}

void terrace_codec_close(terrace_codec* codec) { delete codec; }

int terrace_codec_encode(const char* name, const terrace_codec* codec,
                         const terrace_codec_shape* shape, int32_t lambda16, uint32_t raw_head,
                         uint32_t raw_tail, uint32_t options, const void* kv, void** container,
                         size_t* container_bytes) {
  return Guarded([&]() -> absl::Status {
    const KvShape of = ShapeOf(*shape);
    if (absl::Status status = terrace::codec::CheckShape(of); !status.ok()) return status;
    const Encoder* encoder = codec == nullptr ? nullptr : codec->encoder.get();
    const std::vector<const uint8_t*> sections = SectionsOf(of, kv);
    terrace::codec::EncodeRequest request{of, sections, encoder, lambda16, raw_head, raw_tail};
    request.refined = (options & TERRACE_CODEC_REFINED) != 0;
    if ((options & TERRACE_CODEC_EMBED) != 0 && codec != nullptr) request.embed = codec->profile;
    auto encoded = terrace::codec::Encode(name, request);
    if (!encoded.ok()) return encoded.status();
    return HandOver(*encoded, container, container_bytes);
  });
}

int terrace_codec_default_profile(const terrace_codec_shape* shape, uint32_t pairing,
                                  uint32_t rotary_dim, double theta, const char* model_id,
                                  const void* kv, void** profile, size_t* profile_bytes) {
  return Guarded([&]() -> absl::Status {
    const KvShape of = ShapeOf(*shape);
    if (absl::Status status = terrace::codec::CheckShape(of); !status.ok()) return status;
    if (pairing > 2) return absl::InvalidArgumentError("pairing must be 0 .. 2");
    const auto made = terrace::codec::MakeDefaultProfile(
        of, {static_cast<terrace::kernels::RopePairing>(pairing), rotary_dim, theta},
        SectionsOf(of, kv), model_id);
    if (!made.ok()) return made.status();
    return HandOver(*made, profile, profile_bytes);
  });
}

int terrace_codec_decode(const terrace_codec* codec, const void* container, size_t container_bytes,
                         void* kv, size_t kv_bytes) {
  return Guarded([&] {
    return Decode(codec, {static_cast<const uint8_t*>(container), container_bytes},
                  static_cast<uint8_t*>(kv), kv_bytes);
  });
}

void terrace_codec_free(void* memory) { std::free(memory); }

const char* terrace_codec_last_error() { return last_error.c_str(); }
