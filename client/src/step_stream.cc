// What a stream knows of its set, put into each step's header and checked against each step's spans.
#include "adamant/step_stream.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "adamant/error.h"

namespace adamant {
namespace {

// `tensors` with empty spans for those that are not `carried`, in `storage` if there are any.
template <typename Element>
absl::Span<const absl::Span<Element>> WithoutOthers(absl::Span<const absl::Span<Element>> tensors,
                                                    const std::vector<bool>& carried,
                                                    std::vector<absl::Span<Element>>* storage) {
  if (carried.empty() || tensors.size() != carried.size()) return tensors;
  storage->resize(carried.size());
  for (size_t i = 0; i < carried.size(); ++i) {
    if (carried[i]) (*storage)[i] = tensors[i];
  }
  return *storage;
}

// `carried`, of those tensors whose spans have to fit, is empty if all have to.
template <typename Tensors>
absl::Status CheckSizes(absl::string_view what, const std::vector<v1::Tensor>& expected, Tensors tensors,
                        const std::vector<bool>& carried = {}) {
  if (tensors.size() != expected.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": expected a span for each of ", expected.size(), " tensors, got ", tensors.size()));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!carried.empty() && !carried[i]) continue;
    if (static_cast<int64_t>(tensors[i].size()) != expected[i].element_count()) {
      return absl::InvalidArgumentError(absl::StrCat(what, "[", i, "]: expected the ", expected[i].element_count(),
                                                     " elements of `", expected[i].name(), "`, got ",
                                                     tensors[i].size()));
    }
  }
  return absl::OkStatus();
}

// A tensor's memory.
struct Range {
  const float* begin;
  const float* end;
  bool written;
};

absl::Status CheckNoOverlap(ConstTensors gradients, const std::vector<RowsGradient>& rows, MutableTensors parameters) {
  std::vector<Range> ranges;
  ranges.reserve(gradients.size() + rows.size() + parameters.size());
  // A span without elements may begin within another, and overlaps nothing.
  for (absl::Span<const float> g : gradients) {
    if (!g.empty()) ranges.push_back({g.data(), g.data() + g.size(), false});
  }
  for (const RowsGradient& g : rows) {
    if (!g.values.empty()) ranges.push_back({g.values.data(), g.values.data() + g.values.size(), false});
  }
  for (absl::Span<float> p : parameters) {
    if (!p.empty()) ranges.push_back({p.data(), p.data() + p.size(), true});
  }
  const std::less<const float*> before;
  std::sort(ranges.begin(), ranges.end(), [&](const Range& a, const Range& b) { return before(a.begin, b.begin); });
  // How far the ranges seen so far reach, those that are read and those that are written.
  const float* reach[2] = {nullptr, nullptr};
  for (const Range& range : ranges) {
    if (before(range.begin, reach[!range.written])) {
      return absl::InvalidArgumentError("a span of the gradients overlaps one of the parameters");
    }
    reach[range.written] = std::max(reach[range.written], range.end, before);
  }
  return absl::OkStatus();
}

// Whether the server may have refused the step because other tensors are frozen now than the stream knows.
bool MayBeOfAnotherConfiguration(const absl::Status& status) {
  const v1::ErrorReason reason = GetErrorDetail(status).reason();
  return reason == v1::ERROR_REASON_CONFIG_CHANGED || reason == v1::ERROR_REASON_TENSOR_NOT_CARRIED ||
         reason == v1::ERROR_REASON_INCOMPLETE;
}

// Whether a step replies with parameters.
bool BringsBack(const StepOptions& options) {
  return !options.omit_parameters && !(options.contribution.has_value() && options.contribution->ack_when_folded);
}

}  // namespace

StepStream::StepStream(std::shared_ptr<Connection> connection, const v1::ParameterSet& set,
                       std::vector<v1::Tensor> tensors)
    : connection_(std::move(connection)),
      set_(set.name()),
      schema_fingerprint_(set.schema_fingerprint()),
      tensors_(std::move(tensors)),
      incarnation_(set.incarnation()),
      step_(set.step()) {
  TakeConfiguration(set);
}

absl::StatusOr<v1::StepResult> StepStream::Step(ConstTensors gradients, MutableTensors parameters,
                                                const StepOptions& options) {
  while (true) {
    absl::StatusOr<v1::StepResult> result = Send(gradients, parameters, options);
    if (result.ok() || !MayBeOfAnotherConfiguration(result.status())) return result;
    // Nothing was applied. If the configuration is still the one that was known, then this is not the reason.
    const absl::StatusOr<bool> changed = LearnConfiguration();
    if (!changed.ok() || !*changed) return result;
  }
}

absl::StatusOr<v1::StepResult> StepStream::Send(ConstTensors gradients, MutableTensors parameters,
                                                const StepOptions& options) {
  const absl::StatusOr<std::vector<bool>> carried = Carried(options);
  if (!carried.ok()) return carried.status();
  const bool brings_back = BringsBack(options);
  if (!brings_back) parameters = {};
  absl::Status status = CheckRows(options);
  if (!status.ok()) return status;
  // Those that come in rows have none of the gradients' spans.
  std::vector<bool> whole = *carried;
  if (!options.rows.empty()) whole.resize(tensors_.size(), true);
  for (const RowsGradient& rows : options.rows) whole[rows.tensor] = false;
  status = CheckSizes("gradients", tensors_, gradients, whole);
  if (status.ok() && brings_back) status = CheckSizes("parameters", tensors_, parameters, *carried);
  std::vector<absl::Span<const float>> carried_gradients;
  std::vector<absl::Span<float>> carried_parameters;
  gradients = WithoutOthers(gradients, whole, &carried_gradients);
  parameters = WithoutOthers(parameters, *carried, &carried_parameters);
  if (status.ok()) status = CheckNoOverlap(options.read ? ConstTensors() : gradients, options.rows, parameters);
  if (!status.ok()) return status;

  StepCall call;
  call.header.set_set(set_);
  call.header.set_incarnation(incarnation_);
  call.header.set_schema_fingerprint(schema_fingerprint_);
  call.header.set_request_id(options.request_id);
  if (options.asynchronous) {
    call.header.set_base_step(step_);
  } else {
    call.header.set_expected_step(step_);
  }
  call.header.mutable_tensors()->Add(options.tensors.begin(), options.tensors.end());
  for (const RowsGradient& rows : options.rows) {
    v1::SparseRows* const sparse = call.header.add_sparse();
    sparse->set_tensor(rows.tensor);
    sparse->set_rows(static_cast<int64_t>(rows.rows.size()));
  }
  call.header.mutable_overrides()->Add(options.overrides.begin(), options.overrides.end());
  if (options.grad_scale != 1) call.header.set_grad_scale(options.grad_scale);
  call.header.mutable_metrics()->insert(options.metrics.begin(), options.metrics.end());
  if (options.reply_dtype != v1::DTYPE_FLOAT32) call.header.set_reply_dtype(options.reply_dtype);
  call.header.set_omit_parameters(options.omit_parameters);
  call.header.set_digest_state(options.digest_state);
  if (options.contribution.has_value()) {
    call.header.set_rank(options.contribution->rank);
    call.header.set_round(round_);
    if (options.contribution->weight != 1) call.header.set_weight(options.contribution->weight);
    call.header.set_ack_when_folded(options.contribution->ack_when_folded);
    call.round_timeout = round_timeout_;
  }
  call.gradients = gradients;
  call.rows = options.rows;
  call.parameters = parameters;
  call.gradient_dtype = options.gradient_dtype;
  call.read = options.read;
  call.progress = options.progress;
  absl::StatusOr<v1::StepResult> result = connection_->Step(call);
  if (result.ok()) MoveOn(*result, options);
  return result;
}

absl::StatusOr<std::vector<bool>> StepStream::Carried(const StepOptions& options) const {
  std::vector<bool> carried;
  if (options.tensors.empty()) {
    carried = frozen_;
    carried.flip();
    return carried;
  }
  carried.resize(tensors_.size());
  for (const int32_t tensor : options.tensors) {
    if (tensor < 0 || static_cast<size_t>(tensor) >= tensors_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensors: expected indices below ", tensors_.size(), ", got ", tensor));
    }
    carried[tensor] = true;
  }
  return carried;
}

absl::Status StepStream::CheckRows(const StepOptions& options) const {
  int32_t before = -1;
  for (const RowsGradient& rows : options.rows) {
    if (rows.tensor <= before || static_cast<size_t>(rows.tensor) >= tensors_.size()) {
      return absl::InvalidArgumentError(absl::StrCat("rows: expected ascending indices of tensors below ",
                                                     tensors_.size(), ", got ", rows.tensor, " after ", before));
    }
    before = rows.tensor;
    const v1::Tensor& tensor = tensors_[rows.tensor];
    if (tensor.shape().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows: expected a tensor that has rows, got the scalar `", tensor.name(), "`"));
    }
    const int64_t width = tensor.shape(0) > 0 ? tensor.element_count() / tensor.shape(0) : 0;
    if (static_cast<int64_t>(rows.values.size()) != static_cast<int64_t>(rows.rows.size()) * width) {
      return absl::InvalidArgumentError(absl::StrCat("rows of `", tensor.name(), "`: expected ", width,
                                                     " elements for each of ", rows.rows.size(), ", got ",
                                                     rows.values.size()));
    }
    for (const int64_t row : rows.rows) {
      if (row >= 0 && row < tensor.shape(0)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("rows of `", tensor.name(), "`: expected rows below ", tensor.shape(0), ", got ", row));
    }
  }
  return absl::OkStatus();
}

void StepStream::MoveOn(const v1::StepResult& result, const StepOptions& options) {
  if (options.contribution.has_value()) round_ = result.round();
  if (result.outcome() == v1::STEP_OUTCOME_ACCUMULATED) return;
  if (!BringsBack(options)) {
    if (!options.asynchronous) step_ = result.step();
    return;
  }
  // Of a step that brought some tensors, or rows, the others are of its step, too, if nobody else was there between.
  const bool brought_all = options.tensors.empty() && options.rows.empty();
  if (brought_all || result.parameters_step() <= step_ + 1) step_ = result.parameters_step();
}

absl::StatusOr<bool> StepStream::LearnConfiguration() {
  v1::GetParameterSetRequest request;
  request.set_name(set_);
  const absl::StatusOr<v1::GetParameterSetResponse> response = connection_->GetParameterSet(request);
  if (!response.ok()) return response.status();
  const v1::ParameterSet& set = response->parameter_set();
  round_ = set.round();
  if (set.config_revision() == config_revision_) return false;
  TakeConfiguration(set);
  return true;
}

void StepStream::TakeConfiguration(const v1::ParameterSet& set) {
  config_revision_ = set.config_revision();
  round_ = set.round();
  round_timeout_ = absl::Seconds(set.workers().round_timeout_seconds());
  frozen_.clear();
  for (const v1::ParameterGroup& group : set.groups()) {
    if (!group.frozen()) continue;
    frozen_.resize(tensors_.size());
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (tensors_[i].group() == group.name()) frozen_[i] = true;
    }
  }
}

absl::Status StepStream::Refresh(MutableTensors parameters) {
  absl::Status status = CheckSizes("parameters", tensors_, parameters);
  if (!status.ok()) return status;
  ReadCall call;
  call.request.set_set(set_);
  call.targets = {{v1::SLOT_PARAMETER, parameters}};
  absl::StatusOr<v1::ReadHeader> header = connection_->Read(call);
  if (!header.ok()) return header.status();
  incarnation_ = header->incarnation();
  step_ = header->step();
  // If the round has moved on since the read, then so has the step, and the next contribution is ABORTED.
  return round_ > 0 ? LearnConfiguration().status() : absl::OkStatus();
}

}  // namespace adamant
