// The part of the C ABI that says what will be read.
#include "client/terrace_c_support.h"

namespace terrace {
namespace {

static_assert(TERRACE_HINT_QUEUE == static_cast<int>(HintKind::kQueue));
static_assert(TERRACE_HINT_EXPERTS == static_cast<int>(HintKind::kExperts));

absl::StatusOr<ExpectedRead> Read(const terrace_expected_read& in) {
  absl::Status valid = All(CheckStruct(in.struct_size, sizeof in, "reads"),
                           NotNullUnlessEmpty(in.tokens, in.token_count, "reads.tokens"),
                           NotNullUnlessEmpty(in.extra, in.extra_bytes, "reads.extra"),
                           NotNullUnlessEmpty(in.keys, in.key_count, "reads.keys"));
  if (!valid.ok()) return valid;
  if (in.kind > TERRACE_HINT_EXPERTS) {
    return absl::InvalidArgumentError(
        absl::StrCat("reads.kind: ", in.kind, "; expected 0 .. ", int{TERRACE_HINT_EXPERTS}));
  }
  ExpectedRead read;
  read.kind = static_cast<HintKind>(in.kind);
  read.request_id = in.request_id;
  read.order = in.order;
  read.eta_us = in.eta_us;
  read.deadline_us = in.deadline_us;
  read.confidence = in.confidence;
  read.tokens = absl::MakeConstSpan(in.tokens, in.token_count);
  read.extra = View(in.extra, in.extra_bytes);
  static_assert(sizeof(ObjectKey) == TERRACE_KEY_BYTES && alignof(ObjectKey) == 1);
  read.keys = absl::MakeConstSpan(reinterpret_cast<const ObjectKey*>(in.keys), in.key_count);
  return read;
}

absl::Status Fill(const absl::StatusOr<HintReport>& report, terrace_hint_report* out) {
  if (!report.ok()) return report.status();
  Report(report->why);  // its text
  if (out != nullptr) {
    *out = {report->accepted, report->refused, report->keys,
            static_cast<int32_t>(report->why.code())};
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace terrace

using terrace::All;
using terrace::Guard;
using terrace::NotNull;
using terrace::NotNullUnlessEmpty;

int32_t terrace_hint(terrace_client* client, const terrace_model* model,
                     const terrace_expected_read* reads, size_t count,
                     terrace_hint_report* report) {
  return Guard([&]() -> absl::Status {
    absl::Status valid = All(NotNull(client, "client"), NotNullUnlessEmpty(reads, count, "reads"));
    if (!valid.ok()) return valid;
    std::vector<terrace::ExpectedRead> expected;
    expected.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const auto read = terrace::Read(reads[i]);
      if (!read.ok()) return read.status();
      expected.push_back(*read);
    }
    return terrace::Fill(model == nullptr ? client->client->Hint(expected)
                                          : client->client->Hint(model->model, expected),
                         report);
  });
}

int32_t terrace_withdraw(terrace_client* client, const uint64_t* request_ids, size_t count,
                         terrace_hint_report* report) {
  return Guard([&]() -> absl::Status {
    absl::Status valid =
        All(NotNull(client, "client"), NotNullUnlessEmpty(request_ids, count, "request_ids"));
    if (!valid.ok()) return valid;
    return terrace::Fill(client->client->Withdraw(absl::MakeConstSpan(request_ids, count)), report);
  });
}
