#include "transport/wire_codec.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "transport/wire_fields.h"

namespace terrace {
namespace {

// An extent travels as its bytes in memory: see the record in terrace.capnp.
static_assert(sizeof(ExtentInfo) == 16 && offsetof(ExtentInfo, bytes) == 0 &&
              offsetof(ExtentInfo, eta_us) == 8 && offsetof(ExtentInfo, token_count) == 12 &&
              offsetof(ExtentInfo, tier) == 14 && offsetof(ExtentInfo, flags) == 15);
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
static_assert(alignof(ObjectKey) == 1);

constexpr uint8_t kPriorities = 5;  // DESIGN section 5

}  // namespace

absl::Status TooMany(const char* field, uint64_t count, const WireLimits& limits) {
  return absl::ResourceExhaustedError(
      absl::StrCat(field, ": keys per call ", count,
                   " exceeds limits.max_keys_per_call = ", limits.max_keys_per_call));
}

void WriteStatus(const absl::Status& status, wire::Error::Builder error) {
  error.setCode(static_cast<uint16_t>(status.code()));
  error.setMessage(ToText(std::string(status.message())));
}

absl::Status ReadStatus(wire::Error::Reader error) {
  if (error.getCode() == 0) return absl::OkStatus();
  const auto code = error.getCode() <= static_cast<uint16_t>(absl::StatusCode::kUnauthenticated)
                        ? static_cast<absl::StatusCode>(error.getCode())
                        : absl::StatusCode::kUnknown;
  return absl::Status(code, ToString(error.getMessage()));
}

capnp::Data::Reader KeysAsData(absl::Span<const ObjectKey> keys) {
  return AsData(keys.data(), keys.size() * sizeof(ObjectKey));
}

capnp::Data::Reader KeyAsData(const ObjectKey& key) {
  return key.IsZero() ? capnp::Data::Reader() : AsData(key.bytes.data(), key.bytes.size());
}

capnp::Data::Reader ExtentsAsData(absl::Span<const ExtentInfo> extents) {
  return AsData(extents.data(), extents.size() * sizeof(ExtentInfo));
}

absl::Status ReadKeys(capnp::Data::Reader data, const char* field, const WireLimits& limits,
                      absl::Span<const ObjectKey>& keys) {
  if (data.size() % sizeof(ObjectKey) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", data.size(), " bytes is not a multiple of 32"));
  }
  const size_t count = data.size() / sizeof(ObjectKey);
  if (count > limits.max_keys_per_call) return TooMany(field, count, limits);
  keys = absl::MakeConstSpan(reinterpret_cast<const ObjectKey*>(data.begin()), count);
  return absl::OkStatus();
}

absl::Status ReadKey(capnp::Data::Reader data, const char* field, ObjectKey& key) {
  if (!CopyExactly(data, key.bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", data.size(), " bytes, not 32"));
  }
  return absl::OkStatus();
}

absl::Status ReadOptionalKey(capnp::Data::Reader data, const char* field, ObjectKey& key) {
  key = ObjectKey{};
  return data.size() == 0 ? absl::OkStatus() : ReadKey(data, field, key);
}

absl::Status ReadHello(wire::Terrace::HelloParams::Reader params, ClientHello& hello) {
  hello.protocol_major = params.getProtocolMajor();
  hello.protocol_minor = params.getProtocolMinor();
  if (params.getClientName().size() > kMaxNameBytes || params.getTenant().size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("client_name, tenant: at most ", kMaxNameBytes, " bytes"));
  }
  hello.client_name = ToString(params.getClientName());
  hello.tenant = ToString(params.getTenant());
  return absl::OkStatus();
}

// What the geometry says must be what the layout says, so that nobody reads KV as what it is not.
absl::Status ReadGeometry(wire::KvGeometry::Reader in, const ObjectLayout& layout,
                          KvGeometry& geometry) {
  geometry.model_id = ToString(in.getModelId());
  geometry.dtype = static_cast<Dtype>(in.getDtype());
  geometry.order = static_cast<KvOrder>(in.getOrder());
  geometry.layers = in.getLayers();
  geometry.kv_heads = in.getKvHeads();
  geometry.head_dim = in.getHeadDim();
  geometry.v_head_dim = in.getVHeadDim();
  geometry.rope_theta = in.getRopeTheta();
  geometry.rope_scaling = ToString(in.getRopeScaling());
  geometry.tp_rank = in.getTpRank();
  geometry.tp_size = in.getTpSize();
  geometry.pp_rank = in.getPpRank();
  geometry.pp_size = in.getPpSize();
  geometry.lora = ToString(in.getLora());
  geometry.engine_layout = ToString(in.getEngineLayout());
  if (absl::Status s = geometry.Validate(); !s.ok()) return s;
  const ObjectLayout follows = geometry.Layout();
  const bool same = layout.kind == follows.kind && layout.fingerprint == follows.fingerprint &&
                    layout.part_bytes_per_token == follows.part_bytes_per_token;
  return same ? absl::OkStatus()
              : absl::InvalidArgumentError("geometry: the layout is not what follows from it");
}

absl::Status ReadLayout(wire::Session::RegisterLayoutParams::Reader params, ObjectLayout& layout,
                        std::optional<KvGeometry>& geometry) {
  if (!CopyExactly(params.getFingerprint(), layout.fingerprint)) {
    return absl::InvalidArgumentError(
        absl::StrCat("fingerprint: ", params.getFingerprint().size(), " bytes, not 32"));
  }
  if (!KnownKind(params.getKind())) {
    return absl::InvalidArgumentError(absl::StrCat("kind: ", params.getKind(), " is unknown"));
  }
  layout.kind = static_cast<ObjectKind>(params.getKind());
  const absl::Status parts = ReadList(params.getPartBytesPerToken(), "part_bytes_per_token",
                                      kMaxParts - 1, layout.part_bytes_per_token);
  if (!parts.ok()) return parts;
  if (absl::Status s = layout.Validate(); !s.ok() || !params.hasGeometry()) return s;
  return ReadGeometry(params.getGeometry(), layout, geometry.emplace());
}

absl::Status ReadReserve(wire::Session::ReserveParams::Reader params, const WireLimits& limits,
                         std::vector<ReserveItem>& items) {
  const auto list = params.getItems();
  if (list.size() > limits.max_keys_per_call) return TooMany("items", list.size(), limits);
  items.resize(list.size());
  for (uint32_t i = 0; i < list.size(); ++i) {
    const auto in = list[i];
    ReserveItem& item = items[i];
    absl::Status keys = ReadKey(in.getKey(), "items.key", item.key);
    if (keys.ok()) keys = ReadOptionalKey(in.getParent(), "items.parent", item.parent);
    if (!keys.ok()) return keys;
    item.token_count = in.getTokenCount();
    item.grain_count = in.getGrainCount();
    item.cost_us = in.getCostUs();
    item.position = in.getPosition();
  }
  return absl::OkStatus();
}

absl::Status ReadCommit(wire::Session::CommitParams::Reader params, const WireLimits& limits,
                        std::vector<CommitItem>& items) {
  const auto list = params.getItems();
  if (list.size() > limits.max_keys_per_call) return TooMany("items", list.size(), limits);
  items.resize(list.size());
  for (uint32_t i = 0; i < list.size(); ++i) {
    const auto in = list[i];
    CommitItem& item = items[i];
    item.reservation_id = in.getReservationId();
    absl::Status status = ReadList(in.getPartCrcs(), "items.part_crcs", kMaxParts, item.part_crcs);
    if (!status.ok()) return status;
    status = ReadList(in.getGrainFilters(), "items.grain_filters", kMaxChunkTokens / kGrainTokens,
                      item.grain_filters);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadIds(capnp::List<uint64_t>::Reader list, const char* field,
                     const WireLimits& limits, std::vector<uint64_t>& ids) {
  if (list.size() > limits.max_keys_per_call) return TooMany(field, list.size(), limits);
  ids.resize(list.size());
  for (uint32_t i = 0; i < list.size(); ++i) ids[i] = list[i];
  return absl::OkStatus();
}

absl::Status ReadAcquireOptions(wire::Session::AcquireParams::Reader params,
                                AcquireOptions& options) {
  options.ttl_ms = params.getTtlMs();
  options.priority = params.getPriority();
  if (options.priority >= kPriorities) {
    return absl::InvalidArgumentError(
        absl::StrCat("priority: ", options.priority, " is not 0 .. ", kPriorities - 1));
  }
  if (params.getMemory() > static_cast<uint8_t>(LeaseMemory::kDevice)) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory: ", params.getMemory(), " is neither 0 (host) nor 1 (device)"));
  }
  options.memory = static_cast<LeaseMemory>(params.getMemory());
  return absl::OkStatus();
}

void WriteHello(const ClientHello& hello, wire::Terrace::HelloParams::Builder params) {
  params.setProtocolMajor(hello.protocol_major);
  params.setProtocolMinor(hello.protocol_minor);
  params.setClientName(ToText(hello.client_name));
  params.setTenant(ToText(hello.tenant));
}

void WriteLayout(const ObjectLayout& layout, const KvGeometry* geometry,
                 wire::Session::RegisterLayoutParams::Builder params) {
  params.setFingerprint(AsData(layout.fingerprint.data(), layout.fingerprint.size()));
  params.setKind(static_cast<uint8_t>(layout.kind));
  FillList(layout.part_bytes_per_token,
           params.initPartBytesPerToken(layout.part_bytes_per_token.size()));
  if (geometry == nullptr) return;
  auto out = params.initGeometry();
  out.setModelId(ToText(geometry->model_id));
  out.setDtype(static_cast<uint8_t>(geometry->dtype));
  out.setOrder(static_cast<uint8_t>(geometry->order));
  out.setLayers(geometry->layers);
  out.setKvHeads(geometry->kv_heads);
  out.setHeadDim(geometry->head_dim);
  out.setVHeadDim(geometry->v_head_dim);
  out.setRopeTheta(geometry->rope_theta);
  out.setRopeScaling(ToText(geometry->rope_scaling));
  out.setTpRank(geometry->tp_rank);
  out.setTpSize(geometry->tp_size);
  out.setPpRank(geometry->pp_rank);
  out.setPpSize(geometry->pp_size);
  out.setLora(ToText(geometry->lora));
  out.setEngineLayout(ToText(geometry->engine_layout));
}

uint64_t LayoutWords(const ObjectLayout& layout, const KvGeometry* geometry) {
  uint64_t bytes = 320 + layout.part_bytes_per_token.size() * 4;
  if (geometry == nullptr) return bytes / 8;
  for (const std::string* text :
       {&geometry->model_id, &geometry->rope_scaling, &geometry->lora, &geometry->engine_layout}) {
    bytes += text->size();
  }
  return bytes / 8;
}

uint64_t ReserveWords(absl::Span<const ReserveItem> items) { return 16 + items.size() * 13; }

void WriteReserve(absl::Span<const ReserveItem> items,
                  wire::Session::ReserveParams::Builder params) {
  auto list = params.initItems(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto out = list[i];
    out.setKey(AsData(items[i].key.bytes.data(), items[i].key.bytes.size()));
    if (!items[i].parent.IsZero()) out.setParent(KeyAsData(items[i].parent));
    out.setTokenCount(items[i].token_count);
    out.setGrainCount(items[i].grain_count);
    out.setCostUs(items[i].cost_us);
    out.setPosition(items[i].position);
  }
}

uint64_t CommitWords(absl::Span<const CommitItem> items) {
  uint64_t words = 16;
  for (const CommitItem& item : items) {
    words += 5 + item.part_crcs.size() / 2 + item.grain_filters.size() / 4;
  }
  return words;
}

void WriteCommit(absl::Span<const CommitItem> items, wire::Session::CommitParams::Builder params) {
  auto list = params.initItems(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto out = list[i];
    out.setReservationId(items[i].reservation_id);
    FillList(items[i].part_crcs, out.initPartCrcs(items[i].part_crcs.size()));
    if (!items[i].grain_filters.empty()) {
      FillList(items[i].grain_filters, out.initGrainFilters(items[i].grain_filters.size()));
    }
  }
}

void WriteWelcome(const Welcome& welcome, wire::Welcome::Builder out) {
  out.setProtocolMajor(welcome.protocol_major);
  out.setProtocolMinor(welcome.protocol_minor);
  out.setServerVersion(ToText(welcome.server_version));
  auto features = out.initFeatures(welcome.features.size());
  for (size_t i = 0; i < welcome.features.size(); ++i) features.set(i, ToText(welcome.features[i]));
  out.setSessionId(welcome.session_id);
  out.setTenant(ToText(welcome.tenant));
  out.setSalt(AsData(welcome.salt.data(), welcome.salt.size()));
  out.setVerify(static_cast<uint8_t>(welcome.verify));
  out.setMaxKeysPerCall(welcome.max_keys_per_call);
  out.setDefaultLeaseTtlMs(welcome.default_lease_ttl_ms);
  out.setMaxLeaseTtlMs(welcome.max_lease_ttl_ms);
  out.setHostCapacityBytes(welcome.host_capacity_bytes);
  out.setBoardSlots(welcome.board_slots);
  out.setDeviceCapacityBytes(welcome.device_capacity_bytes);
}

absl::Status ReadWelcome(wire::Welcome::Reader in, Welcome& welcome) {
  welcome.protocol_major = in.getProtocolMajor();
  welcome.protocol_minor = in.getProtocolMinor();
  welcome.server_version = ToString(in.getServerVersion());
  for (auto feature : in.getFeatures()) welcome.features.push_back(ToString(feature));
  welcome.session_id = in.getSessionId();
  welcome.tenant = ToString(in.getTenant());
  if (!CopyExactly(in.getSalt(), welcome.salt)) return BadReply("welcome.salt");
  if (!KnownVerify(in.getVerify())) return BadReply("welcome.verify");
  welcome.verify = static_cast<VerifyMode>(in.getVerify());
  welcome.max_keys_per_call = in.getMaxKeysPerCall();
  welcome.default_lease_ttl_ms = in.getDefaultLeaseTtlMs();
  welcome.max_lease_ttl_ms = in.getMaxLeaseTtlMs();
  welcome.host_capacity_bytes = in.getHostCapacityBytes();
  welcome.board_slots = in.getBoardSlots();
  welcome.device_capacity_bytes = in.getDeviceCapacityBytes();
  return absl::OkStatus();
}

absl::Status ReadExtents(capnp::Data::Reader data, size_t max_count,
                         std::vector<ExtentInfo>& extents) {
  const size_t count = data.size() / sizeof(ExtentInfo);
  if (data.size() % sizeof(ExtentInfo) != 0 || count > max_count) return BadReply("extents");
  for (size_t i = 0; i < count; ++i) {
    if (!KnownTier(data[i * sizeof(ExtentInfo) + offsetof(ExtentInfo, tier)])) {
      return BadReply("extents.tier");
    }
  }
  if (count == 0) return absl::OkStatus();
  const size_t before = extents.size();
  extents.resize(before + count);
  std::memcpy(static_cast<void*>(extents.data() + before), data.begin(), data.size());
  return absl::OkStatus();
}

void WriteTailMatch(const TailMatch& match, wire::TailMatch::Builder out) {
  out.setFound(match.found);
  if (!match.found) return;
  out.setKey(AsData(match.key.bytes.data(), match.key.bytes.size()));
  out.setMatchedGrains(match.matched_grains);
  out.setGrainCount(match.grain_count);
  out.setInfo(ExtentsAsData(absl::MakeConstSpan(&match.info, 1)));
}

absl::Status ReadTailMatch(wire::TailMatch::Reader in, TailMatch& match) {
  match.found = in.getFound();
  if (!match.found) return absl::OkStatus();
  if (!CopyExactly(in.getKey(), match.key.bytes)) return BadReply("match.key");
  match.matched_grains = in.getMatchedGrains();
  match.grain_count = in.getGrainCount();
  std::vector<ExtentInfo> info;
  if (!ReadExtents(in.getInfo(), 1, info).ok() || info.size() != 1) return BadReply("match.info");
  match.info = info[0];
  return absl::OkStatus();
}

void WriteReserveResults(absl::Span<const ReserveResult> results,
                         capnp::List<wire::ReserveResult>::Builder out) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = out[i];
    if (!results[i].status.ok()) WriteStatus(results[i].status, result.initError());
    result.setReservationId(results[i].reservation_id);
    result.setOffset(results[i].offset);
    result.setRetryAfterMs(results[i].retry_after_ms);
  }
}

absl::Status ReadReserveResults(capnp::List<wire::ReserveResult>::Reader in, size_t count,
                                std::vector<ReserveResult>& results) {
  if (in.size() != count) return BadReply("results");
  results.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const auto result = in[i];
    results[i].status = ReadStatus(result.getError());
    results[i].reservation_id = result.getReservationId();
    results[i].offset = result.getOffset();
    results[i].retry_after_ms = result.getRetryAfterMs();
  }
  return absl::OkStatus();
}

uint64_t AcquireWords(const AcquireReply& reply) {
  uint64_t words = 32;
  for (const AcquireResult& result : reply.results) {
    words += 8 + result.part_crcs.size() / 2 + 1;
    if (!result.status.ok()) words += 4 + result.status.message().size() / 8;
  }
  return words;
}

void WriteAcquire(const AcquireReply& reply, wire::AcquireReply::Builder out) {
  out.setLeaseId(reply.lease_id);
  out.setDeadlineUs(reply.deadline_us);
  auto results = out.initResults(reply.results.size());
  for (size_t i = 0; i < reply.results.size(); ++i) {
    const AcquireResult& from = reply.results[i];
    auto result = results[i];
    if (!from.status.ok()) WriteStatus(from.status, result.initError());
    result.setOffset(from.offset);
    result.setPayloadBytes(from.payload_bytes);
    result.setTokenCount(from.token_count);
    result.setGrainCount(from.grain_count);
    result.setBoardSlot(from.board_slot);
    result.setSource(static_cast<uint8_t>(from.source));
    result.setRetryAfterMs(from.retry_after_ms);
    if (!from.part_crcs.empty()) {
      FillList(from.part_crcs, result.initPartCrcs(from.part_crcs.size()));
    }
  }
}

absl::Status ReadAcquire(wire::AcquireReply::Reader in, size_t count, AcquireReply& reply) {
  reply.lease_id = in.getLeaseId();
  reply.deadline_us = in.getDeadlineUs();
  const auto results = in.getResults();
  if (results.size() != count) return BadReply("results");
  reply.results.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const auto from = results[i];
    AcquireResult& result = reply.results[i];
    result.status = ReadStatus(from.getError());
    result.offset = from.getOffset();
    result.payload_bytes = from.getPayloadBytes();
    result.token_count = from.getTokenCount();
    result.grain_count = from.getGrainCount();
    result.board_slot = from.getBoardSlot();
    if (!KnownTier(from.getSource())) return BadReply("results.source");
    result.source = static_cast<TierId>(from.getSource());
    result.retry_after_ms = from.getRetryAfterMs();
    if (!ReadList(from.getPartCrcs(), "part_crcs", kMaxParts, result.part_crcs).ok()) {
      return BadReply("results.part_crcs");
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace
