// Hints: what an engine expects to read, as keys, in calls of what the daemon takes.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/core.h"
#include "client/prefix_keys.h"

namespace terrace {
namespace {

// Sends hints in as few calls as the daemon's limit on keys allows, and adds up the answers.
class HintSender {
 public:
  explicit HintSender(ClientCore& core) : core_(core), limit_(core.welcome().max_keys_per_call) {}

  absl::Status Add(HintItem item) {
    const size_t given = item.keys.size();
    item.keys = item.keys.first(std::min<size_t>(given, limit_));
    if (items_.size() == limit_ || keys_ + item.keys.size() > limit_) {
      if (absl::Status sent = Send(); !sent.ok()) return sent;
    }
    keys_ += item.keys.size();
    items_.push_back(item);
    given_.push_back(given);
    return absl::OkStatus();
  }

  absl::Status Send() {
    if (items_.empty()) return absl::OkStatus();
    const auto results = core_.connection().Hint(items_);
    if (!results.ok()) return results.status();
    for (size_t i = 0; i < items_.size(); ++i) Count((*results)[i], given_[i]);
    items_.clear();
    given_.clear();
    keys_ = 0;
    return absl::OkStatus();
  }

  HintReport& report() { return report_; }

 private:
  void Count(const HintResult& result, size_t given) {
    report_.keys += result.accepted;
    absl::Status status = result.status;
    if (status.ok() && given > limit_) {
      status = absl::ResourceExhaustedError(absl::StrCat(
          "keys: ", given, " in one hint, more than limits.max_keys_per_call = ", limit_));
    }
    ++(status.ok() ? report_.accepted : report_.refused);
    if (report_.why.ok()) report_.why = std::move(status);
  }

  ClientCore& core_;
  const size_t limit_;
  std::vector<HintItem> items_;
  std::vector<size_t> given_;
  size_t keys_ = 0;
  HintReport report_;
};

}  // namespace

absl::StatusOr<HintReport> Client::HintFor(const Model* model,
                                           absl::Span<const ExpectedRead> reads) {
  std::vector<std::vector<ObjectKey>> prompts;  // keys that hints borrow
  prompts.reserve(reads.size());
  HintSender sender(*core_);
  for (size_t i = 0; i < reads.size(); ++i) {
    const ExpectedRead& read = reads[i];
    if (!read.tokens.empty() && (model == nullptr || !read.keys.empty())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "reads[", i, "].tokens: ", model == nullptr ? "need a model" : "given beside keys"));
    }
    absl::Span<const ObjectKey> keys = read.keys;
    if (!read.tokens.empty()) {
      const PrefixKeys prompt(core_->welcome().salt, model->root, read.tokens, read.extra);
      keys = prompts.emplace_back(prompt.ChunkKeys(prompt.chunks()));
    }
    const absl::Status added =
        sender.Add({read.kind, read.request_id, read.order, read.eta_us, read.deadline_us,
                    read.confidence, model == nullptr ? kAnyLayout : model->layout_id, keys});
    if (!added.ok()) return added;
  }
  if (absl::Status sent = sender.Send(); !sent.ok()) return sent;
  return std::move(sender.report());
}

absl::StatusOr<HintReport> Client::Hint(const Model& model, absl::Span<const ExpectedRead> reads) {
  return HintFor(&model, reads);
}

absl::StatusOr<HintReport> Client::Hint(absl::Span<const ExpectedRead> reads) {
  return HintFor(nullptr, reads);
}

absl::StatusOr<HintReport> Client::Withdraw(absl::Span<const uint64_t> request_ids) {
  HintSender sender(*core_);
  for (const uint64_t request_id : request_ids) {
    HintItem item;
    item.kind = HintKind::kWithdraw;
    item.request_id = request_id;
    if (absl::Status added = sender.Add(item); !added.ok()) return added;
  }
  if (absl::Status sent = sender.Send(); !sent.ok()) return sent;
  return std::move(sender.report());
}

}  // namespace terrace
