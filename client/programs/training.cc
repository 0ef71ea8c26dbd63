// Set up, train, clean up.
#include "client/programs/training.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "client/programs/initialization.h"
#include "client/programs/regression.h"

namespace adamant::programs {
namespace {

absl::Status Annotate(const absl::Status& status, absl::string_view what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

v1::ParameterSetSpec Spec(const std::string& name, const Mlp& mlp, const TrainingPlan& plan) {
  v1::ParameterSetSpec spec;
  spec.set_name(name);
  spec.set_initialization(v1::INITIALIZATION_WRITTEN);
  spec.set_device(plan.device);
  for (const Mlp::Tensor& tensor : mlp.Tensors()) {
    v1::TensorSpec* added = spec.add_tensors();
    added->set_name(tensor.name);
    added->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  }
  spec.add_groups()->set_learning_rate(plan.learning_rate);
  return spec;
}

// One span a tensor, of the array that holds them one after the other.
template <typename Element>
std::vector<absl::Span<Element>> SplitByTensor(const Mlp& mlp, absl::Span<Element> all) {
  std::vector<absl::Span<Element>> spans;
  for (const Mlp::Tensor& tensor : mlp.Tensors()) {
    int64_t size = 1;
    for (int64_t extent : tensor.shape) size *= extent;
    spans.push_back(all.first(size));
    all.remove_prefix(size);
  }
  return spans;
}

absl::StatusOr<TrainingSummary> TrainSet(const TrainingPlan& plan, const std::string& name, Mlp mlp, Client& client,
                                         StepCallback after_step) {
  std::vector<float> parameters = InitialParameters(plan.widths, plan.seed);
  std::vector<float> gradient(parameters.size());
  const auto parameter_spans = SplitByTensor<float>(mlp, absl::MakeSpan(parameters));
  const auto initial_spans = SplitByTensor<const float>(mlp, parameters);
  const auto gradient_spans = SplitByTensor<const float>(mlp, gradient);
  const auto written = client.WriteParameters(name, initial_spans);
  if (!written.ok()) return Annotate(written.status(), "cannot write the first parameters");
  absl::StatusOr<StepStream> stream = client.OpenStepStream(name);
  if (!stream.ok()) return Annotate(stream.status(), "cannot open a stream of steps");

  const std::vector<Batch> batches = SplitIntoBatches(plan.data, plan.batch_size);
  TrainingProgress progress = {.steps_in_all = plan.epochs * static_cast<int64_t>(batches.size())};
  std::vector<absl::Duration> step_times;
  const absl::Time start = absl::Now();
  for (int epoch = 1; epoch <= plan.epochs; ++epoch) {
    double sum = 0;
    int samples = 0;
    for (const Batch& batch : batches) {
      sum += static_cast<double>(mlp.LossAndGradient(parameters, batch, absl::MakeSpan(gradient))) * batch.samples;
      samples += batch.samples;
      const absl::Time sent = absl::Now();
      const absl::StatusOr<v1::StepResult> result = stream->Step(gradient_spans, parameter_spans);
      step_times.push_back(absl::Now() - sent);
      const std::string step = absl::StrCat("step ", ++progress.steps_done);
      if (!result.ok()) return Annotate(result.status(), step);
      if (result->outcome() != v1::STEP_OUTCOME_APPLIED) {
        return absl::FailedPreconditionError(absl::StrCat(step, " was skipped: the gradient is not finite"));
      }
      progress.epoch = epoch;
      progress.epoch_done = samples == plan.data.samples;
      progress.loss = sum / samples;
      if (!after_step(progress)) return absl::CancelledError("interrupted");
    }
  }
  const absl::Duration elapsed = absl::Now() - start;
  const auto middle = step_times.begin() + step_times.size() / 2;
  std::nth_element(step_times.begin(), middle, step_times.end());
  return TrainingSummary{.steps = static_cast<int64_t>(step_times.size()), .elapsed = elapsed, .median_step = *middle};
}

absl::Status Delete(const std::string& name, Client& client) {
  const absl::StatusOr<v1::ParameterSet> set = client.GetParameterSet(name);
  return set.ok() ? client.DeleteParameterSet(name, set->incarnation()) : set.status();
}

}  // namespace

absl::StatusOr<TrainingSummary> Train(const TrainingPlan& plan, const std::string& name, Client client,
                                      StepCallback after_step) {
  Mlp mlp(plan.widths);
  const auto created = client.CreateParameterSet(Spec(name, mlp, plan), v1::IF_EXISTS_USE_IF_SAME_SPEC);
  if (!created.ok()) return Annotate(created.status(), "cannot create a parameter set");

  absl::StatusOr<TrainingSummary> summary = TrainSet(plan, name, std::move(mlp), client, after_step);
  // To wait for a lost server once more would double the time that the user allowed.
  if (absl::IsUnavailable(summary.status()) || absl::IsDeadlineExceeded(summary.status())) {
    return Annotate(summary.status(), absl::StrCat("the server is lost, and may still hold the set ", name));
  }
  const absl::Status deleted = Delete(name, client);
  if (summary.ok() && !deleted.ok()) return Annotate(deleted, absl::StrCat("cannot delete the set ", name));
  return summary;
}

}  // namespace adamant::programs
