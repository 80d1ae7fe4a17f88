#include "transport/hint_codec.h"

#include "absl/strings/str_cat.h"
#include "transport/wire_fields.h"

namespace terrace {
namespace {

bool KnownHint(uint8_t kind) { return kind <= static_cast<uint8_t>(HintKind::kWithdraw); }

absl::Status CheckAhead(const char* field, uint64_t us) {
  if (us <= kMaxHintAheadUs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", us, " is not 0 .. ", kMaxHintAheadUs, " microseconds from now"));
}

absl::Status ReadHint(wire::HintItem::Reader in, const WireLimits& limits, HintItem& item) {
  if (!KnownHint(in.getKind())) {
    return absl::InvalidArgumentError(absl::StrCat("hints.kind: ", in.getKind(), " is unknown"));
  }
  item.kind = static_cast<HintKind>(in.getKind());
  item.request_id = in.getRequestId();
  item.order = in.getOrder();
  item.eta_us = in.getEtaUs();
  item.deadline_us = in.getDeadlineUs();
  item.confidence = in.getConfidence();
  item.layout_id = in.getLayoutId();
  absl::Status status = CheckAhead("hints.eta_us", item.eta_us);
  if (status.ok()) status = CheckAhead("hints.deadline_us", item.deadline_us);
  if (status.ok()) status = ReadKeys(in.getKeys(), "hints.keys", limits, item.keys);
  if (!status.ok()) return status;
  if (!(item.confidence >= 0 && item.confidence <= 1)) {  // nor is it NaN
    return absl::InvalidArgumentError(
        absl::StrCat("hints.confidence: ", item.confidence, " is not 0 .. 1"));
  }
  if (item.kind == HintKind::kWithdraw && !item.keys.empty()) {
    return absl::InvalidArgumentError("hints.keys: a withdrawal names its request only");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadHints(wire::Session::HintParams::Reader params, const WireLimits& limits,
                       std::vector<HintItem>& items) {
  const auto list = params.getHints();
  if (list.size() > limits.max_keys_per_call) return TooMany("hints", list.size(), limits);
  items.resize(list.size());
  uint64_t keys = 0;
  for (uint32_t i = 0; i < list.size(); ++i) {
    if (absl::Status s = ReadHint(list[i], limits, items[i]); !s.ok()) return s;
    keys += items[i].keys.size();
    if (keys > limits.max_keys_per_call) return TooMany("hints.keys", keys, limits);
  }
  return absl::OkStatus();
}

uint64_t HintWords(absl::Span<const HintItem> items) {
  uint64_t words = 16;
  for (const HintItem& item : items) words += 7 + item.keys.size() * sizeof(ObjectKey) / 8;
  return words;
}

void WriteHints(absl::Span<const HintItem> items, wire::Session::HintParams::Builder params) {
  auto list = params.initHints(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    auto out = list[i];
    out.setKind(static_cast<uint8_t>(items[i].kind));
    out.setRequestId(items[i].request_id);
    out.setOrder(items[i].order);
    out.setEtaUs(items[i].eta_us);
    out.setDeadlineUs(items[i].deadline_us);
    out.setConfidence(items[i].confidence);
    out.setLayoutId(items[i].layout_id);
    if (!items[i].keys.empty()) out.setKeys(KeysAsData(items[i].keys));
  }
}

void WriteHintResults(absl::Span<const HintResult> results,
                      capnp::List<wire::HintResult>::Builder out) {
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].status.ok()) WriteStatus(results[i].status, out[i].initError());
    out[i].setAccepted(results[i].accepted);
  }
}

absl::Status ReadHintResults(capnp::List<wire::HintResult>::Reader in,
                             absl::Span<const HintItem> items, std::vector<HintResult>& results) {
  if (in.size() != items.size()) return BadReply("results");
  results.resize(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    results[i].status = ReadStatus(in[i].getError());
    results[i].accepted = in[i].getAccepted();
    if (results[i].accepted > items[i].keys.size()) return BadReply("results.accepted");
  }
  return absl::OkStatus();
}

}  // namespace terrace
