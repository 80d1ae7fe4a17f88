#include "daemon/transcoder.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "codec/default_profile.h"
#include "kernels/checksum.h"
#include "spdlog/spdlog.h"

namespace terrace {
namespace {

constexpr uint64_t kKeptBufferBytes = uint64_t{256} << 20;
// Tokens at the start of a sequence that attention leans on (StreamingLLM, arXiv:2309.17453): they
// stay exact under lossy codecs.
constexpr uint32_t kSinks = 4;
constexpr double kNewest = 0.2;  // weight of the last decode in a measured speed

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Where an object's sections lie.
std::vector<const uint8_t*> SectionsOf(const std::vector<PartSpan>& parts, const uint8_t* payload) {
  std::vector<const uint8_t*> sections;
  for (size_t i = 1; i < parts.size(); ++i) sections.push_back(payload + parts[i].offset);
  return sections;
}

codec::KvShape ShapeOf(const KvGeometry& geometry, uint32_t tokens, uint32_t position) {
  return {geometry.dtype,
          geometry.order,
          geometry.layers,
          geometry.kv_heads,
          geometry.head_dim,
          geometry.v_head_dim,
          tokens,
          position == kUnknownPosition ? 0 : position};
}

absl::Status CheckPayload(const EncodeJob& job, const std::vector<PartSpan>& parts) {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (kernels::Crc32c(job.payload + parts[i].offset, parts[i].bytes) != job.part_crcs[i]) {
      return absl::DataLossError(
          absl::StrCat("not written: part ", i, " is not what its checksum says"));
    }
  }
  return absl::OkStatus();
}

// Where the container lies in a record's payload.
uint64_t ContainerOffset(uint32_t grain_count) {
  return AlignUp(IdentityBytes(grain_count), kPartAlignment);
}

// The record of a container (docs/formats/record.md, codec 1).
absl::StatusOr<EncodedObject> MakeRecord(const EncodeJob& job, std::span<const uint8_t> container,
                                         kernels::BufferPool& buffers) {
  const auto chunk = codec::ParseHeader(container);
  if (!chunk.ok()) return chunk.status();
  const uint64_t start = ContainerOffset(job.grain_count);
  EncodedObject object;
  object.payload_bytes = AlignUp(start + container.size(), kPartAlignment);
  object.payload = buffers.Take(object.payload_bytes);
  uint8_t* out = object.payload->data();
  if (out == nullptr) return absl::ResourceExhaustedError("no memory for an encoded object");
  std::memcpy(out, job.payload, IdentityBytes(job.grain_count));
  std::memcpy(out + start, container.data(), container.size());
  object.part_ends = {IdentityBytes(job.grain_count), start + chunk->sections[0].offset};
  for (size_t v = 1; v < chunk->sections.size(); v += 2) {
    object.part_ends.push_back(start + chunk->sections[v].offset + chunk->sections[v].bytes);
  }
  uint64_t begin = 0;
  for (uint64_t end : object.part_ends) {
    object.part_crcs.push_back(kernels::Crc32c(out + begin, end - begin));
    begin = AlignUp(end, kPartAlignment);
  }
  return object;
}

// The container is of an object that is cut like `parts`.
absl::Status CheckFits(const codec::KvShape& shape, const std::vector<PartSpan>& parts) {
  bool fits = parts.size() == 1 + shape.Sections();
  for (uint32_t s = 0; fits && s < shape.Sections(); ++s) {
    fits = parts[s + 1].bytes == shape.SectionBytes(s);
  }
  return fits ? absl::OkStatus()
              : absl::FailedPreconditionError("the encoded KV is of another geometry");
}

}  // namespace

struct Transcoder::Measured {
  std::vector<Candidate> candidates;
  std::vector<StoredProfile> made;  // of this object
};

// --- encoding -----------------------------------------------------------------------------------

Transcoder::Transcoder(const CodecSection& options, const std::string& state_dir,
                       const PostFn& post, Metrics& metrics)
    : options_(options),
      kl_(QualityKl(options.quality).value_or(0)),
      metrics_(metrics),
      profiles_(options.profiles, state_dir + "/profiles"),
      buffers_(std::make_shared<kernels::BufferPool>(kKeptBufferBytes)),
      pool_(options.threads != 0 ? static_cast<uint32_t>(options.threads)
                                 : std::thread::hardware_concurrency() / 2,
            post) {}

void Transcoder::Describe(uint32_t layout_id, const ObjectLayout& layout,
                          const KvGeometry& geometry) {
  if (options_.select == "raw" || layouts_.contains(layout_id)) return;
  auto described = std::make_unique<KvLayout>();
  described->layout = layout;
  described->geometry = geometry;
  layouts_.emplace(layout_id, std::move(described));
}

void Transcoder::Encode(EncodeJob job, const LinkState& link, EncodeDone done) {
  KvLayout& layout = *layouts_.at(job.layout);
  Waiting waiting{std::move(job), link, std::move(done)};
  if (!layout.candidates.empty()) {
    Start(layout, std::move(waiting));
    return;
  }
  layout.waiting.push_back(std::move(waiting));
  if (!std::exchange(layout.measuring, true)) Measure(layout);
}

namespace {

// Encodes and decodes the object once, for what that costs. What fails is not for this KV.
absl::StatusOr<CodecCost> Try(const codec::CodecEntry& codec, const codec::EncodeRequest& request,
                              const EncodeJob& job, uint64_t object_bytes,
                              kernels::BufferPool& buffers) {
  const auto container = codec.encode(request);
  if (!container.ok()) return container.status();
  const auto record = MakeRecord(job, *container, buffers);
  if (!record.ok()) return record.status();
  CodecCost cost;
  cost.lossless = !codec.needs_profile;
  cost.ratio = static_cast<double>(record->payload_bytes) / static_cast<double>(object_bytes);
  const auto decoder = codec::Decoder::Make(
      *container, request.profile != nullptr ? request.profile->profile() : nullptr);
  if (!decoder.ok()) return decoder.status();
  const auto out = buffers.Take(object_bytes);
  if (out->data() == nullptr) return absl::ResourceExhaustedError("no memory to try a codec");
  for (int round = 0; round < 2; ++round) {  // the first meets cold code and memory
    const auto start = std::chrono::steady_clock::now();
    uint8_t* at = out->data();
    for (uint32_t s = 0; s < request.shape.Sections(); ++s) {
      if (absl::Status status = decoder->Section(s, at); !status.ok()) return status;
      at += request.shape.SectionBytes(s);
    }
    cost.decode_bytes_per_s =
        static_cast<double>(at - out->data()) / std::max(Seconds(start), 1e-9);
  }
  return cost;
}

// For a model that nobody calibrated. Rotation by pairs of halves is what transformers and vLLM do;
// where it is done otherwise the profile is less good, and as right.
absl::StatusOr<StoredProfile> DefaultProfile(const codec::KvShape& shape,
                                             const KvGeometry& geometry,
                                             std::span<const uint8_t* const> sections) {
  codec::DefaultRope rope;
  if (geometry.rope_theta > 0 && geometry.rope_scaling.empty() && shape.k_dim % 2 == 0 &&
      shape.k_dim == shape.v_dim) {
    rope = {kernels::RopePairing::kHalf, shape.k_dim, geometry.rope_theta};
  }
  auto bytes = codec::MakeDefaultProfile(shape, rope, sections, geometry.model_id);
  if (!bytes.ok()) return bytes.status();
  return ParseStored(*std::move(bytes));
}

}  // namespace

// On a codec thread: tries each codec that may be used on an object.
class Transcoder::Trial {
 public:
  Trial(const Transcoder& owner, const KvGeometry& geometry, const ObjectLayout& layout,
        const EncodeJob& job)
      : owner_(owner),
        geometry_(geometry),
        job_(job),
        bytes_(layout.PayloadBytes(job.token_count, job.grain_count)),
        sections_(SectionsOf(layout.Parts(job.token_count, job.grain_count), job.payload)) {
    request_.shape = ShapeOf(geometry, job.token_count, job.position);
    request_.sections = sections_;
    request_.raw_head = kSinks;
  }

  Measured Run(std::vector<StoredProfile> profiles) {
    TryLossless();
    if (profiles.empty() && owner_.kl_ > 0) MakeDefault(&profiles);
    for (const StoredProfile& stored : profiles) TryProfile(stored);
    if (Any() || measured_.candidates.empty()) {
      measured_.candidates.insert(measured_.candidates.begin(), {"raw", nullptr, nullptr, 0, {}});
    }
    return std::move(measured_);
  }

 private:
  bool Any() const { return owner_.options_.select == "auto"; }

  void Add(Candidate candidate) {
    const auto cost = Try(*candidate.codec, request_, job_, bytes_, *owner_.buffers_);
    if (!cost.ok()) {
      spdlog::info("codec {}: not for this KV: {}", candidate.name, cost.status().ToString());
      return;
    }
    candidate.cost = *cost;
    if (cost->ratio < 1) measured_.candidates.push_back(std::move(candidate));
  }

  void TryLossless() {
    for (const char* name : {"lossless-fast", "lossless", "zstd"}) {
      // zstd is larger than lossless and slower than lossless-fast: for those who ask for it.
      const bool asked = owner_.options_.select == name;
      if (!asked && (!Any() || std::strcmp(name, "zstd") == 0)) continue;
      Add({name, *codec::FindCodec(std::string_view(name)), nullptr, 0, {}});
    }
  }

  void MakeDefault(std::vector<StoredProfile>* profiles) {
    absl::StatusOr<StoredProfile> made = DefaultProfile(request_.shape, geometry_, sections_);
    if (!made.ok()) {
      spdlog::info("{} has no codec profile, and none was made: {}", geometry_.model_id,
                   made.status().ToString());
      return;
    }
    profiles->push_back(*made);
    measured_.made.push_back(*std::move(made));
  }

  void TryProfile(const StoredProfile& stored) {
    const std::string form = FormName(*stored.profile);
    const std::optional<int32_t> step = stored.profile->StepFor(owner_.kl_);
    if ((!Any() && owner_.options_.select != form) || !step) return;
    auto encoder = codec::Encoder::Make(stored.profile);
    absl::Status status = encoder.status();
    if (status.ok()) status = KeepProfile(owner_.profiles_.own_directory(), stored);
    if (!status.ok()) {
      spdlog::warn("profile {} is not used: {}", stored.profile->name(), status.ToString());
      return;
    }
    request_.profile = encoder->get();
    request_.lambda16 = *step;
    Add({form, *codec::FindCodec(codec::CodecId::kProfile), *std::move(encoder), *step, {}});
  }

  const Transcoder& owner_;  // what does not change: options, buffers, the profiles' directory
  const KvGeometry& geometry_;
  const EncodeJob& job_;
  const uint64_t bytes_;
  const std::vector<const uint8_t*> sections_;
  codec::EncodeRequest request_;
  Measured measured_;
};

void Transcoder::Measure(KvLayout& layout) {
  auto measured = std::make_shared<Measured>();
  std::vector<StoredProfile> profiles;
  if (kl_ > 0) profiles = profiles_.For(layout.geometry);
  auto work = [this, measured, profiles = std::move(profiles), job = layout.waiting.front().job,
               geometry = layout.geometry, object = layout.layout]() mutable {
    *measured = Trial(*this, geometry, object, job).Run(std::move(profiles));
  };
  auto done = [this, measured, &layout] {
    for (StoredProfile& made : measured->made) profiles_.Add(std::move(made));
    layout.candidates = std::move(measured->candidates);
    for (const Candidate& candidate : layout.candidates) {
      spdlog::info("codec {} for {}: {:.3f} of the size, decodes {:.2f} GB/s a thread",
                   candidate.name, layout.geometry.model_id, candidate.cost.ratio,
                   candidate.cost.decode_bytes_per_s / 1e9);
    }
    for (Waiting& waiting : std::exchange(layout.waiting, {})) Start(layout, std::move(waiting));
  };
  pool_.Run({}, std::move(work), std::move(done));
}

void Transcoder::Start(KvLayout& layout, Waiting waiting) {
  std::vector<CodecCost> costs;
  std::vector<const Candidate*> allowed;
  for (const Candidate& candidate : layout.candidates) {
    // Where its tokens are in their sequence must be known to turn keys back.
    const bool placed = waiting.job.position != kUnknownPosition || candidate.encoder == nullptr ||
                        candidate.encoder->profile()->rotary_dim() == 0;
    if (!placed) continue;
    costs.push_back(candidate.cost);
    allowed.push_back(&candidate);
  }
  const uint64_t bytes =
      layout.layout.PayloadBytes(waiting.job.token_count, waiting.job.grain_count);
  const Candidate* chosen =
      allowed.empty() ? nullptr
                      : allowed[ChooseCodec(costs, waiting.link, bytes, layout.geometry.layers)];
  if (chosen == nullptr || chosen->codec == nullptr) {
    waiting.done(EncodedObject{});
    return;
  }
  auto result = std::make_shared<absl::StatusOr<EncodedObject>>(EncodedObject{});
  auto work = [this, result, bytes, job = std::move(waiting.job), codec = chosen->codec,
               encoder = chosen->encoder, lambda16 = chosen->lambda16, object = layout.layout,
               geometry = layout.geometry] {
    const auto parts = object.Parts(job.token_count, job.grain_count);
    const auto sections = SectionsOf(parts, job.payload);
    if (absl::Status status = CheckPayload(job, parts); !status.ok()) {
      *result = status;
      return;
    }
    const auto container =
        codec->encode({ShapeOf(geometry, job.token_count, job.position), sections, encoder.get(),
                       lambda16, job.position == 0 ? kSinks : 0, 0});
    if (!container.ok()) {
      *result = container.status();
      return;
    }
    absl::StatusOr<EncodedObject> record = MakeRecord(job, *container, *buffers_);
    // What does not become smaller is stored as it is.
    if (!record.ok() || record->payload_bytes < bytes) *result = std::move(record);
  };
  auto done = [this, result, bytes, done = std::move(waiting.done)]() mutable {
    if (result->ok() && (*result)->payload != nullptr) {
      ++metrics_.encoded_objects;
      metrics_.encoded_bytes += (*result)->payload_bytes;
      metrics_.encoded_from_bytes += bytes;
    }
    done(std::move(*result));
  };
  pool_.Run({}, std::move(work), std::move(done));
}

// --- decoding -----------------------------------------------------------------------------------

class Transcoder::Decoding final : public ObjectDecoding,
                                   public std::enable_shared_from_this<Decoding> {
 public:
  Decoding(Transcoder& owner, const DecodeJob& job, std::function<void(uint32_t)> progress,
           DecodeDone done)
      : owner_(owner),
        job_(job),
        parts_(job.layout->Parts(job.token_count, job.grain_count)),
        buffer_(owner.buffers_->Take(job.stored_bytes)),
        progress_(std::move(progress)),
        done_(std::move(done)),
        crcs_(parts_.size()) {}

  uint8_t* staging() override { return buffer_->data(); }

  void Arrived(uint32_t parts) override {
    arrived_ = parts;
    Pump();
  }

  void Hasten(IoPriority priority, uint64_t batch) override {
    job_.priority = priority;
    job_.batch = batch;
  }

  void ReadEnded(absl::Status status) override {
    read_ended_ = true;
    if (status_.ok()) status_ = std::move(status);
    Pump();
  }

 private:
  using Clock = std::chrono::steady_clock;

  uint32_t layers() const { return static_cast<uint32_t>(parts_.size() / 2); }

  void Pump() {
    if (status_.ok() && arrived_ >= 2 && !std::exchange(opening_, true)) Open();
    while (status_.ok() && decoder_.has_value() && running_opens_ == 0 && next_ < layers() &&
           next_ + 2 < arrived_) {
      DecodeNext();
    }
    if (!read_ended_ || running_ > 0) return;
    if (status_.ok() && ready_ < layers()) {
      status_ = absl::DataLossError("the record ends before its last layer");
    }
    Finish();
  }

  void Finish() {
    if (done_ == nullptr) return;
    DecodeDone done = std::exchange(done_, nullptr);
    if (!status_.ok()) {
      done(status_);
      return;
    }
    owner_.metrics_.decoded_bytes += decoded_bytes_;
    ++owner_.metrics_.decoded_objects;
    owner_.Decoded(*decoder_, static_cast<double>(decoded_bytes_) / std::max(seconds_, 1e-9));
    done(std::move(crcs_));
  }

  // The header is here: what decoding every layer shares.
  void Open() {
    const std::span<const uint8_t> container(buffer_->data() + ContainerOffset(job_.grain_count),
                                             job_.stored_bytes - ContainerOffset(job_.grain_count));
    const auto chunk = codec::ParseHeader(container);
    status_ = chunk.status();
    if (status_.ok()) status_ = CheckFits(chunk->header.shape, parts_);
    if (!status_.ok()) return;
    auto profile = owner_.profiles_.Find(chunk->header.profile);
    auto opened = std::make_shared<absl::StatusOr<codec::Decoder>>(absl::UnknownError(""));
    ++running_;
    ++running_opens_;
    owner_.pool_.Run(
        {job_.priority, job_.batch, 0},
        [self = shared_from_this(), container, profile = std::move(profile), opened]() mutable {
          std::memcpy(self->job_.destination, self->buffer_->data(), self->parts_[0].bytes);
          self->crcs_[0] = kernels::Crc32c(self->job_.destination, self->parts_[0].bytes);
          *opened = codec::Decoder::Make(container, std::move(profile));
        },
        [self = shared_from_this(), opened] {
          --self->running_;
          --self->running_opens_;
          if (opened->ok()) {
            self->decoder_.emplace(*std::move(*opened));
          } else if (self->status_.ok()) {
            self->status_ = opened->status();
          }
          self->Pump();
        });
  }

  void DecodeNext() {
    const uint32_t layer = next_++;
    struct Result {
      absl::Status status;
      double seconds = 0;
    };
    auto result = std::make_shared<Result>();
    ++running_;
    owner_.pool_.Run(
        {job_.priority, job_.batch, layer + 1},
        [self = shared_from_this(), layer, result] {
          const auto start = Clock::now();
          for (uint32_t s = 2 * layer; s < 2 * layer + 2 && result->status.ok(); ++s) {
            uint8_t* const out = self->job_.destination + self->parts_[s + 1].offset;
            result->status = self->decoder_->Section(s, out);
            self->crcs_[s + 1] = kernels::Crc32c(out, self->parts_[s + 1].bytes);
          }
          result->seconds = Seconds(start);
        },
        [self = shared_from_this(), layer, result] {
          self->LayerDone(layer, result->status, result->seconds);
        });
  }

  void LayerDone(uint32_t layer, const absl::Status& status, double seconds) {
    --running_;
    seconds_ += seconds;
    decoded_bytes_ += parts_[2 * layer + 1].bytes + parts_[2 * layer + 2].bytes;
    if (status.ok()) {
      finished_.resize(layers());
      finished_[layer] = true;
      const uint32_t before = ready_;
      while (ready_ < layers() && finished_[ready_]) ++ready_;
      if (ready_ > before && status_.ok()) progress_(1 + 2 * ready_);
    } else if (status_.ok()) {
      status_ = status;
    }
    Pump();
  }

  Transcoder& owner_;
  DecodeJob job_;  // urgency aside, as it was given
  const std::vector<PartSpan> parts_;
  const std::unique_ptr<kernels::PooledBuffer> buffer_;
  const std::function<void(uint32_t)> progress_;
  DecodeDone done_;
  std::optional<codec::Decoder> decoder_;  // written on the loop, before any layer is begun
  std::vector<uint32_t> crcs_;             // each written by the task of its part
  // Of the loop.
  uint32_t arrived_ = 0;  // parts of the record
  bool opening_ = false, read_ended_ = false;
  uint32_t running_ = 0, running_opens_ = 0;  // tasks
  uint32_t next_ = 0, ready_ = 0;             // layers begun; leading layers done
  std::vector<bool> finished_;
  absl::Status status_;
  uint64_t decoded_bytes_ = 0;
  double seconds_ = 0;
};

std::shared_ptr<ObjectDecoding> Transcoder::StartDecode(const DecodeJob& job,
                                                        std::function<void(uint32_t)> progress,
                                                        DecodeDone done) {
  auto decoding = std::make_shared<Decoding>(*this, job, std::move(progress), std::move(done));
  if (decoding->staging() == nullptr) return nullptr;
  return decoding;
}

void Transcoder::Decoded(const codec::Decoder& decoder, double bytes_per_s) {
  const codec::ChunkHeader& header = decoder.header();
  for (auto& [id, layout] : layouts_) {
    for (Candidate& candidate : layout->candidates) {
      const bool same =
          candidate.codec != nullptr && candidate.codec->id == header.codec &&
          (candidate.encoder == nullptr || candidate.encoder->profile()->hash() == header.profile);
      const KvGeometry& geometry = layout->geometry;
      if (!same || geometry.layers != header.shape.layers ||
          geometry.kv_heads != header.shape.heads || geometry.head_dim != header.shape.k_dim) {
        continue;
      }
      double& speed = candidate.cost.decode_bytes_per_s;
      speed = speed == 0 ? bytes_per_s : (1 - kNewest) * speed + kNewest * bytes_per_s;
    }
  }
}

}  // namespace terrace
