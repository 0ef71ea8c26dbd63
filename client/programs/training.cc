// Set up, train, clean up.
#include "client/programs/training.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
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
  *spec.add_groups() = plan.group;
  if (plan.clipping.bound_case() != v1::Clipping::BOUND_NOT_SET) *spec.mutable_clipping() = plan.clipping;
  spec.set_max_staleness(plan.workers - 1);
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

// What workers share: which batch is next, and what has come of those before. Thread-safe.
class Course {
 public:
  struct Task {
    int epoch;
    const Batch* batch;
  };

  // `batches` are those of each epoch, and outlive this, as `after_step` does.
  Course(const TrainingPlan& plan, const std::vector<Batch>* batches, StepCallback after_step)
      : epochs_(plan.epochs), samples_(plan.data.samples), batches_(*batches), after_step_(after_step) {
    progress_.steps_in_all = plan.epochs * static_cast<int64_t>(batches->size());
  }

  // The next task. Nothing once all are given out, or the training has ended early.
  std::optional<Task> NextTask() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (next_batch_ == batches_.size()) {
      next_batch_ = 0;
      ++next_epoch_;
    }
    if (next_epoch_ > epochs_ || !status_.ok()) return std::nullopt;
    return Task{next_epoch_, &batches_[next_batch_++]};
  }

  // Its loss, and how long its remote step took.
  void Finish(const Task& task, float loss, absl::Duration step_time) {
    std::lock_guard<std::mutex> lock(mutex_);
    step_times_.push_back(step_time);
    ++progress_.steps_done;
    Epoch& epoch = open_[task.epoch];
    epoch.sum += static_cast<double>(loss) * task.batch->samples;
    epoch.samples += task.batch->samples;
    int told = task.epoch;
    do {
      const Epoch& of = open_[told];
      progress_.epoch = told;
      progress_.epoch_done = told == open_.begin()->first && of.samples == samples_;
      progress_.loss = of.sum / of.samples;
      if (!after_step_(progress_)) EndLocked(absl::CancelledError("interrupted"));
      if (!progress_.epoch_done) return;
      open_.erase(told++);
    } while (!open_.empty() && open_.begin()->first == told && open_.begin()->second.samples == samples_);
  }

  // Ends the training early; the first reason holds. Names the step that it happened in.
  void End(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex_);
    EndLocked(Annotate(status, absl::StrCat("step ", progress_.steps_done + 1)));
  }

  bool ended() {
    std::lock_guard<std::mutex> lock(mutex_);
    return !status_.ok();
  }

  // To be called when all workers have ended.
  absl::StatusOr<TrainingSummary> Summarize() {
    if (!status_.ok()) return status_;
    const absl::Duration elapsed = absl::Now() - start_;
    const auto middle = step_times_.begin() + step_times_.size() / 2;
    std::nth_element(step_times_.begin(), middle, step_times_.end());
    return TrainingSummary{
        .steps = static_cast<int64_t>(step_times_.size()), .elapsed = elapsed, .median_step = *middle};
  }

 private:
  struct Epoch {
    double sum = 0;
    int samples = 0;
  };

  void EndLocked(const absl::Status& status) { status_.Update(status); }

  const int epochs_;
  const int samples_;
  const std::vector<Batch>& batches_;
  const StepCallback after_step_;
  const absl::Time start_ = absl::Now();

  std::mutex mutex_;
  // What follows is guarded by `mutex_`.
  int next_epoch_ = 1;
  size_t next_batch_ = 0;
  std::map<int, Epoch> open_;  // those that are not done
  TrainingProgress progress_;
  std::vector<absl::Duration> step_times_;
  absl::Status status_;
};

// One worker: takes tasks until there are none, and starts from `parameters`, which are those of `stream`'s step.
void Work(const TrainingPlan& plan, Mlp mlp, std::vector<float> parameters, StepStream stream, Course* course) {
  std::vector<float> gradient(parameters.size());
  const auto parameter_spans = SplitByTensor<float>(mlp, absl::MakeSpan(parameters));
  const auto gradient_spans = SplitByTensor<const float>(mlp, gradient);
  const StepOptions options = {
      .gradient_dtype = plan.dtype, .reply_dtype = plan.dtype, .asynchronous = plan.workers > 1};
  while (const std::optional<Course::Task> task = course->NextTask()) {
    v1::StepOutcome outcome;
    do {
      const float loss = mlp.LossAndGradient(parameters, *task->batch, absl::MakeSpan(gradient));
      const absl::Time sent = absl::Now();
      const absl::StatusOr<v1::StepResult> result = stream.Step(gradient_spans, parameter_spans, options);
      const absl::Duration step_time = absl::Now() - sent;
      if (!result.ok()) return course->End(result.status());
      outcome = result->outcome();
      if (outcome == v1::STEP_OUTCOME_APPLIED) {
        course->Finish(*task, loss, step_time);
      } else if (outcome != v1::STEP_OUTCOME_REFUSED_STALE) {
        return course->End(absl::FailedPreconditionError("skipped: the gradient is not finite"));
      }
      // What was refused for being stale brought the parameters of now: the same batch once more, from there.
    } while (outcome != v1::STEP_OUTCOME_APPLIED && !course->ended());
  }
}

absl::StatusOr<TrainingSummary> TrainSet(const TrainingPlan& plan, const std::string& name, const Mlp& mlp,
                                         Client& client, StepCallback after_step) {
  const std::vector<float> parameters = InitialParameters(plan.widths, plan.seed);
  const auto written = client.WriteParameters(name, SplitByTensor<const float>(mlp, parameters));
  if (!written.ok()) return Annotate(written.status(), "cannot write the first parameters");
  // All of them before the first step, for they stand at the first parameters.
  std::vector<StepStream> streams;
  for (int i = 0; i < plan.workers; ++i) {
    absl::StatusOr<StepStream> stream = client.OpenStepStream(name);
    if (!stream.ok()) return Annotate(stream.status(), "cannot open a stream of steps");
    streams.push_back(*std::move(stream));
  }

  const std::vector<Batch> batches = SplitIntoBatches(plan.data, plan.batch_size);
  Course course(plan, &batches, after_step);
  const auto work = [&](int i) { Work(plan, mlp, parameters, std::move(streams[i]), &course); };
  std::vector<std::thread> others;
  for (int i = 1; i < plan.workers; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
  return course.Summarize();
}

absl::Status Delete(const std::string& name, Client& client) {
  const absl::StatusOr<v1::ParameterSet> set = client.GetParameterSet(name);
  return set.ok() ? client.DeleteParameterSet(name, set->incarnation()) : set.status();
}

}  // namespace

absl::StatusOr<TrainingSummary> Train(const TrainingPlan& plan, const std::string& name, Client client,
                                      StepCallback after_step) {
  const Mlp mlp(plan.widths);
  const auto created = client.CreateParameterSet(Spec(name, mlp, plan), v1::IF_EXISTS_USE_IF_SAME_SPEC);
  if (!created.ok()) return Annotate(created.status(), "cannot create a parameter set");

  absl::StatusOr<TrainingSummary> summary = TrainSet(plan, name, mlp, client, after_step);
  // To wait for a lost server once more would double the time that the user allowed.
  if (absl::IsUnavailable(summary.status()) || absl::IsDeadlineExceeded(summary.status())) {
    return Annotate(summary.status(), absl::StrCat("the server is lost, and may still hold the set ", name));
  }
  const absl::Status deleted = Delete(name, client);
  if (summary.ok() && !deleted.ok()) return Annotate(deleted, absl::StrCat("cannot delete the set ", name));
  return summary;
}

}  // namespace adamant::programs
