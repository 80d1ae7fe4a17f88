// Between objects as engines lay them out and the encoded form in which records hold them
// (docs/formats/record.md, codec 1). Decides how each object is encoded, by what it measured on the
// first of its layout, and decodes layers in order while later ones are still being read.
//
// Loop thread; the work is done by a CodecPool. What callers pass by pointer must stay until
// `done`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "codec/chunk_codec.h"
#include "config/kv_geometry.h"
#include "config/options.h"
#include "daemon/catalog.h"
#include "daemon/codec_choice.h"
#include "daemon/codec_pool.h"
#include "daemon/metrics.h"
#include "daemon/profile_store.h"
#include "kernels/buffer_pool.h"

namespace terrace {

// An object to encode, with what a client promised of it.
struct EncodeJob {
  uint32_t layout = 0;
  uint32_t token_count = 0, grain_count = 0;
  uint32_t position = kUnknownPosition;  // of its first token
  const uint8_t* payload = nullptr;
  std::vector<uint32_t> part_crcs;
};

// The payload of a record, and its parts. Without a payload: the object is stored as it is.
struct EncodedObject {
  std::shared_ptr<kernels::PooledBuffer> payload;
  uint64_t payload_bytes = 0;
  std::vector<uint64_t> part_ends;
  std::vector<uint32_t> part_crcs;
};

// An object that is decoded while its record is read.
class ObjectDecoding {
 public:
  virtual ~ObjectDecoding() = default;
  virtual uint8_t* staging() = 0;  // where the record's payload goes
  // Parts [0, n) of the record are there. Ascending n.
  virtual void Arrived(uint32_t parts) = 0;
  // What is not being decoded yet becomes that urgent.
  virtual void Hasten(IoPriority priority, uint64_t batch) = 0;
  // The read ended, in good order or not. `done` of StartDecode runs once no thread is at work:
  // with the read's status, else what was wrong with the encoded bytes.
  virtual void ReadEnded(absl::Status status) = 0;
};

class Transcoder {
 public:
  using EncodeDone = absl::AnyInvocable<void(absl::StatusOr<EncodedObject>)>;
  // Parts of the object, with the checksums of them all.
  using DecodeDone = absl::AnyInvocable<void(absl::StatusOr<std::vector<uint32_t>>)>;

  Transcoder(const CodecSection& options, const std::string& state_dir, const PostFn& post,
             Metrics& metrics);

  // Objects of this layout are KV of this geometry.
  void Describe(uint32_t layout_id, const ObjectLayout& layout, const KvGeometry& geometry);
  // Whether Encode may do something for objects of the layout.
  bool Encodes(uint32_t layout_id) const { return layouts_.contains(layout_id); }
  // `link`: what the object will come back through. DataLoss when the payload is not what its
  // checksums say.
  void Encode(EncodeJob job, const LinkState& link, EncodeDone done);

  struct DecodeJob {
    const ObjectLayout* layout = nullptr;
    uint32_t token_count = 0, grain_count = 0;
    uint64_t stored_bytes = 0;  // of the record's payload
    uint8_t* destination = nullptr;
    IoPriority priority = IoPriority::kDemand;
    uint64_t batch = 0;
  };
  // `progress`: the first so many parts of the object are at the destination, and right.
  // `done`: DataLoss, or FailedPrecondition when the profile is not here, as well. Null when memory
  // is short.
  std::shared_ptr<ObjectDecoding> StartDecode(const DecodeJob& job,
                                              std::function<void(uint32_t parts)> progress,
                                              DecodeDone done);

  uint32_t threads() const { return pool_.threads(); }

 private:
  struct Candidate {
    std::string name;
    const codec::CodecEntry* codec = nullptr;
    std::shared_ptr<const codec::Encoder> encoder;
    int32_t lambda16 = 0;
    CodecCost cost;
  };
  struct Waiting {
    EncodeJob job;
    LinkState link;
    EncodeDone done;
  };
  struct KvLayout {
    ObjectLayout layout;
    KvGeometry geometry;
    bool measuring = false;
    std::vector<Candidate> candidates;  // empty until measured
    std::vector<Waiting> waiting;       // for that
  };
  struct Measured;
  class Trial;
  class Decoding;

  void Measure(KvLayout& layout);
  // A thread decoded so fast just now.
  void Decoded(const codec::Decoder& decoder, double bytes_per_s);
  void Start(KvLayout& layout, Waiting waiting);

  const CodecSection options_;
  const double kl_;
  Metrics& metrics_;
  ProfileStore profiles_;
  std::shared_ptr<kernels::BufferPool> buffers_;
  absl::flat_hash_map<uint32_t, std::unique_ptr<KvLayout>> layouts_;  // by id
  CodecPool pool_;                                                    // last: its threads end first
};

}  // namespace terrace
