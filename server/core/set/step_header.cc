#include "server/core/set/step_header.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/base/utf8.h"
#include "server/core/set/requests.h"
#include "server/core/set/row_staging.h"
#include "server/core/spec/range.h"
#include "server/core/spec/workers.h"

namespace adamant::core {
namespace {

constexpr int kMaxMetrics = 32;
constexpr size_t kMaxMetricNameBytes = 63;
constexpr double kMinGradScale = 0x1p-48;
constexpr double kMaxGradScale = 0x1p48;
constexpr double kMinWeight = 0x1p-48;
constexpr double kMaxWeight = 0x1p48;

absl::Status ValidateMetrics(const google::protobuf::Map<std::string, double>& metrics) {
  constexpr absl::string_view kField = "header.metrics";
  if (metrics.size() > kMaxMetrics) {
    return InvalidField(kField, absl::StrCat("at most ", kMaxMetrics, " metrics"), absl::StrCat(metrics.size()));
  }
  for (const auto& [name, value] : metrics) {
    if (!name.empty() && name.size() <= kMaxMetricNameBytes && IsUtf8(name)) continue;
    return InvalidField(kField, absl::StrCat("names of 1 to ", kMaxMetricNameBytes, " bytes of UTF-8"), Quoted(name));
  }
  return absl::OkStatus();
}

// What a contribution to a round says of itself, and no other step does.
absl::Status ValidateContribution(const v1::StepHeader& header) {
  if (!header.has_rank()) {
    if (header.has_round()) return InvalidField("header.round", "none without a rank", absl::StrCat(header.round()));
    if (header.has_weight()) {
      return InvalidField("header.weight", "none without a rank", absl::StrCat(header.weight()));
    }
    if (header.ack_when_folded()) return InvalidField("header.ack_when_folded", "none without a rank", "true");
    return absl::OkStatus();
  }
  if (!header.has_round()) return InvalidField("header.round", "one with a rank", "none");
  if (header.has_base_step()) {
    return InvalidField("header.base_step", "none with a rank", absl::StrCat(header.base_step()));
  }
  if (!header.sparse().empty()) return InvalidField("header.sparse", "none with a rank", "some");
  if (!header.has_weight()) return absl::OkStatus();
  return ValidateRange(header.weight(), kMinWeight, kMaxWeight, "header.weight");
}

}  // namespace

absl::Status ValidateStepHeader(const v1::StepHeader& header) {
  if (header.request_id().empty()) {
    if (header.has_attempt()) {
      return InvalidField("header.attempt", "none without a request_id", absl::StrCat(header.attempt()));
    }
  } else {
    if (absl::Status status = ValidateRequestId(header.request_id(), "header.request_id"); !status.ok()) return status;
    if (!header.has_expected_step() && !header.has_base_step()) {
      return InvalidField("header.expected_step", "one with a request_id, or a base_step", "none");
    }
  }
  if (header.has_attempt() && header.attempt() < 1) {
    return InvalidField("header.attempt", "1 or more", absl::StrCat(header.attempt()));
  }
  if (header.has_expected_step() && header.expected_step() < 0) {
    return InvalidField("header.expected_step", "0 or more", absl::StrCat(header.expected_step()));
  }
  if (header.has_base_step() && header.has_expected_step()) {
    return InvalidField("header.base_step", "none with an expected_step", absl::StrCat(header.base_step()));
  }
  if (header.has_base_step() && header.base_step() < 0) {
    return InvalidField("header.base_step", "0 or more", absl::StrCat(header.base_step()));
  }
  if (header.has_grad_scale()) {
    absl::Status status = ValidateRange(header.grad_scale(), kMinGradScale, kMaxGradScale, "header.grad_scale");
    if (!status.ok()) return status;
  }
  if (absl::Status status = ValidateContribution(header); !status.ok()) return status;
  if (!v1::Dtype_IsValid(header.reply_dtype())) {
    return InvalidField("header.reply_dtype", "DTYPE_FLOAT32, DTYPE_BFLOAT16 or DTYPE_FLOAT16",
                        EnumName(header.reply_dtype()));
  }
  return ValidateMetrics(header.metrics());
}

absl::StatusOr<std::shared_ptr<const TensorSelection>> SelectTensors(const SetRep& set, const v1::StepHeader& header) {
  const std::vector<v1::ParameterGroup>& groups = set.configuration->groups();
  if (!header.overrides().empty()) {
    absl::Status status = OverrideGroups(groups, header.overrides(), "header.overrides").status();
    if (!status.ok()) return status;
  }
  if (header.tensors().empty() && header.sparse().empty()) return set.trainable;
  absl::StatusOr<std::vector<bool>> selected = set.trainable->selected();
  if (!header.tensors().empty()) selected = SelectByIndex(*set.schema, header.tensors(), "header.tensors");
  if (!selected.ok()) return selected.status();
  for (int i = 0; i < header.tensors_size(); ++i) {
    if (set.trainable->has(header.tensors(i))) continue;
    const Schema::Tensor& tensor = set.schema->tensors()[header.tensors(i)];
    return InvalidField(
        absl::StrCat("header.tensors[", i, "]"), "a tensor of a group that is not frozen",
        absl::StrCat(header.tensors(i), " (", Quoted(tensor.name), "), of ", Quoted(groups[tensor.group].name())));
  }
  if (absl::Status status = TakeOutSparse(*set.schema, header, &*selected); !status.ok()) return status;
  // The last step's, which its work refers to, where it is the same.
  if (set.trainable->IsOf(*selected)) return set.trainable;
  if (set.work != nullptr && set.work->selection().IsOf(*selected)) return set.work->shared_selection();
  return std::make_shared<const TensorSelection>(set.schema, *std::move(selected));
}

absl::Status CheckWorker(const SetRep& set, const v1::StepHeader& header) {
  const v1::Workers* const workers = set.configuration->workers();
  const std::string rank = header.has_rank() ? absl::StrCat(header.rank()) : "none";
  if (workers == nullptr) return InvalidField("header.rank", "none in a set without workers", rank);
  if (!header.has_rank() || header.rank() < 0 || header.rank() >= workers->count()) {
    return InvalidField("header.rank", absl::StrCat("one of the set's ", workers->count(), " workers, counted from 0"),
                        rank);
  }
  if (header.has_weight() && !AreAveraged(*workers)) {
    return InvalidField("header.weight", "none where contributions are not averaged", absl::StrCat(header.weight()));
  }
  if (header.round() <= set.round_number) return absl::OkStatus();
  return set.lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_ROUND_MISMATCH,
                                 ExpectedGot(absl::StrCat("at most ", set.round_number), absl::StrCat(header.round())),
                                 "header.round");
}

}  // namespace adamant::core
