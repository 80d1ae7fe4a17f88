#include "transport/operator_codec.h"

#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "transport/wire_codec.h"
#include "transport/wire_fields.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxCurvePoints = 4096;
constexpr uint32_t kMaxTiers = 16;

absl::Status ReadName(capnp::Text::Reader text, const char* field, std::string& name) {
  if (text.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", text.size(), " bytes, at most ", kMaxNameBytes));
  }
  name = ToString(text);
  return absl::OkStatus();
}

bool IsRatio(float value) { return value >= 0 && value <= 1; }

}  // namespace

void WriteObject(const ObjectInfo& object, wire::ObjectInfo::Builder out) {
  out.setKey(AsData(object.key.bytes.data(), object.key.bytes.size()));
  if (!object.parent.IsZero()) out.setParent(KeyAsData(object.parent));
  out.setFingerprint(AsData(object.fingerprint.data(), object.fingerprint.size()));
  out.setKind(static_cast<uint8_t>(object.kind));
  out.setTokenCount(object.token_count);
  out.setGrainCount(object.grain_count);
  out.setCostUs(object.cost_us);
  out.setPartCount(object.part_count);
  out.setPayloadBytes(object.payload_bytes);
  out.setInHost(object.in_host);
  out.setInNvme(object.in_nvme);
  out.setInHbm(object.in_hbm);
  out.setPinned(object.pinned);
  out.setLeaseCount(object.lease_count);
}

absl::Status ReadObject(wire::ObjectInfo::Reader in, ObjectInfo& object) {
  if (!CopyExactly(in.getKey(), object.key.bytes)) return BadReply("object.key");
  if (!ReadOptionalKey(in.getParent(), "parent", object.parent).ok()) {
    return BadReply("object.parent");
  }
  if (!CopyExactly(in.getFingerprint(), object.fingerprint)) return BadReply("object.fingerprint");
  if (!KnownKind(in.getKind())) return BadReply("object.kind");
  object.kind = static_cast<ObjectKind>(in.getKind());
  object.token_count = in.getTokenCount();
  object.grain_count = in.getGrainCount();
  object.cost_us = in.getCostUs();
  object.part_count = in.getPartCount();
  object.payload_bytes = in.getPayloadBytes();
  object.in_host = in.getInHost();
  object.in_nvme = in.getInNvme();
  object.in_hbm = in.getInHbm();
  object.pinned = in.getPinned();
  object.lease_count = in.getLeaseCount();
  return absl::OkStatus();
}

void WriteVerify(const VerifyReply& reply, wire::VerifyReply::Builder out) {
  out.setNextCursor(reply.next_cursor);
  out.setChecked(reply.checked);
  out.setCorrupt(reply.corrupt);
  out.setSkipped(reply.skipped);
  out.setBytes(reply.bytes);
  out.setCorruptKeys(KeysAsData(reply.corrupt_keys));
}

absl::Status ReadVerify(wire::VerifyReply::Reader in, VerifyReply& reply) {
  reply.next_cursor = in.getNextCursor();
  reply.checked = in.getChecked();
  reply.corrupt = in.getCorrupt();
  reply.skipped = in.getSkipped();
  reply.bytes = in.getBytes();
  const auto keys = in.getCorruptKeys();
  if (keys.size() % sizeof(ObjectKey) != 0) return BadReply("corrupt_keys");
  reply.corrupt_keys.resize(keys.size() / sizeof(ObjectKey));
  if (keys.size() > 0) std::memcpy(reply.corrupt_keys.data(), keys.begin(), keys.size());
  return absl::OkStatus();
}

void WriteStatusReply(const StatusReply& reply, wire::StatusReply::Builder out) {
  out.setVersion(ToText(reply.version));
  out.setPid(reply.pid);
  out.setUptimeMs(reply.uptime_ms);
  out.setSocketPath(ToText(reply.socket_path));
  out.setStateDir(ToText(reply.state_dir));
  out.setVerify(static_cast<uint8_t>(reply.verify));
  auto tiers = out.initTiers(reply.tiers.size());
  for (size_t i = 0; i < reply.tiers.size(); ++i) {
    const TierStatus& from = reply.tiers[i];
    auto tier = tiers[i];
    tier.setName(ToText(from.name));
    tier.setDetail(ToText(from.detail));
    tier.setCapacityBytes(from.capacity_bytes);
    tier.setUsedBytes(from.used_bytes);
    tier.setObjects(from.objects);
    tier.setPopulatedBytes(from.populated_bytes);
    tier.setHugePageBytes(from.huge_page_bytes);
  }
  auto sessions = out.initSessions(reply.sessions.size());
  for (size_t i = 0; i < reply.sessions.size(); ++i) {
    const SessionStatus& from = reply.sessions[i];
    auto session = sessions[i];
    session.setId(from.id);
    session.setPid(from.pid);
    session.setUid(from.uid);
    session.setClientName(ToText(from.client_name));
    session.setTenant(ToText(from.tenant));
    session.setLeases(from.leases);
    session.setReservations(from.reservations);
    session.setAgeMs(from.age_ms);
  }
  out.setObjects(reply.objects);
  out.setLeases(reply.leases);
  out.setReservations(reply.reservations);
  auto counters = out.initCounters(reply.counters.size());
  for (size_t i = 0; i < reply.counters.size(); ++i) {
    counters[i].setName(ToText(reply.counters[i].first));
    counters[i].setValue(reply.counters[i].second);
  }
}

absl::Status ReadStatusReply(wire::StatusReply::Reader in, StatusReply& reply) {
  reply.version = ToString(in.getVersion());
  reply.pid = in.getPid();
  reply.uptime_ms = in.getUptimeMs();
  reply.socket_path = ToString(in.getSocketPath());
  reply.state_dir = ToString(in.getStateDir());
  if (!KnownVerify(in.getVerify())) return BadReply("verify");
  reply.verify = static_cast<VerifyMode>(in.getVerify());
  for (const auto from : in.getTiers()) {
    TierStatus& tier = reply.tiers.emplace_back();
    tier.name = ToString(from.getName());
    tier.detail = ToString(from.getDetail());
    tier.capacity_bytes = from.getCapacityBytes();
    tier.used_bytes = from.getUsedBytes();
    tier.objects = from.getObjects();
    tier.populated_bytes = from.getPopulatedBytes();
    tier.huge_page_bytes = from.getHugePageBytes();
  }
  for (const auto from : in.getSessions()) {
    SessionStatus& session = reply.sessions.emplace_back();
    session.id = from.getId();
    session.pid = from.getPid();
    session.uid = from.getUid();
    session.client_name = ToString(from.getClientName());
    session.tenant = ToString(from.getTenant());
    session.leases = from.getLeases();
    session.reservations = from.getReservations();
    session.age_ms = from.getAgeMs();
  }
  reply.objects = in.getObjects();
  reply.leases = in.getLeases();
  reply.reservations = in.getReservations();
  for (const auto from : in.getCounters()) {
    reply.counters.emplace_back(ToString(from.getName()), from.getValue());
  }
  return absl::OkStatus();
}

absl::Status ReadResize(wire::Session::ResizeParams::Reader params, ResizeRequest& request) {
  absl::Status status = ReadName(params.getTier(), "tier", request.tier);
  if (status.ok()) status = ReadName(params.getTenant(), "tenant", request.tenant);
  request.bytes = params.getBytes();
  request.percent = params.getPercent();
  return status;
}

void WriteResize(const ResizeRequest& request, wire::Session::ResizeParams::Builder params) {
  params.setTier(ToText(request.tier));
  params.setTenant(ToText(request.tenant));
  params.setBytes(request.bytes);
  params.setPercent(request.percent);
}

void WriteResizeReply(const ResizeReply& reply, wire::ResizeReply::Builder out) {
  out.setCurrentBytes(reply.current_bytes);
  out.setTargetBytes(reply.target_bytes);
  out.setDone(reply.done);
  out.setHeldByLeasesBytes(reply.held_by_leases_bytes);
}

absl::Status ReadResizeReply(wire::ResizeReply::Reader in, ResizeReply& reply) {
  reply.current_bytes = in.getCurrentBytes();
  reply.target_bytes = in.getTargetBytes();
  reply.done = in.getDone();
  reply.held_by_leases_bytes = in.getHeldByLeasesBytes();
  return absl::OkStatus();
}

absl::Status ReadCurveQuery(wire::Session::MissRatioCurveParams::Reader params,
                            MissRatioQuery& query) {
  absl::Status status = ReadName(params.getTier(), "tier", query.tier);
  return status.ok() ? ReadName(params.getTenant(), "tenant", query.tenant) : status;
}

void WriteCurveQuery(const MissRatioQuery& query,
                     wire::Session::MissRatioCurveParams::Builder params) {
  params.setTier(ToText(query.tier));
  params.setTenant(ToText(query.tenant));
}

uint64_t CurveWords(const MissRatioCurveReply& reply) {
  uint64_t words = 16 + reply.points.size() * 2;
  for (const TierCapacity& tier : reply.capacities) words += 4 + tier.tier.size() / 8;
  return words;
}

void WriteCurve(const MissRatioCurveReply& reply, wire::MissRatioCurveReply::Builder out) {
  auto points = out.initPoints(reply.points.size());
  for (size_t i = 0; i < reply.points.size(); ++i) {
    points[i].setBytes(reply.points[i].bytes);
    points[i].setByAccesses(reply.points[i].by_accesses);
    points[i].setByBytes(reply.points[i].by_bytes);
  }
  out.setAccesses(reply.accesses);
  out.setSampled(reply.sampled);
  out.setAccessesPerHour(reply.accesses_per_hour);
  out.setHitSavesUs(reply.hit_saves_us);
  auto capacities = out.initCapacities(reply.capacities.size());
  for (size_t i = 0; i < reply.capacities.size(); ++i) {
    capacities[i].setTier(ToText(reply.capacities[i].tier));
    capacities[i].setBytes(reply.capacities[i].bytes);
  }
}

absl::Status ReadCurve(wire::MissRatioCurveReply::Reader in, MissRatioCurveReply& reply) {
  if (in.getPoints().size() > kMaxCurvePoints) return BadReply("points");
  if (in.getCapacities().size() > kMaxTiers) return BadReply("capacities");
  for (const auto from : in.getPoints()) {
    const MissRatioPoint point{from.getBytes(), from.getByAccesses(), from.getByBytes()};
    if (!IsRatio(point.by_accesses) || !IsRatio(point.by_bytes)) return BadReply("points");
    reply.points.push_back(point);
  }
  reply.accesses = in.getAccesses();
  reply.sampled = in.getSampled();
  reply.accesses_per_hour = in.getAccessesPerHour();
  reply.hit_saves_us = in.getHitSavesUs();
  for (const double value : {reply.accesses_per_hour, reply.hit_saves_us}) {
    if (!std::isfinite(value) || value < 0) return BadReply("accesses_per_hour, hit_saves_us");
  }
  for (const auto from : in.getCapacities()) {
    reply.capacities.push_back({ToString(from.getTier()), from.getBytes()});
  }
  return absl::OkStatus();
}

}  // namespace terrace
