// Set up, train, clean up.
#include "client/programs/training.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "client/programs/initialization.h"
#include "client/programs/network_set.h"
#include "client/programs/regression.h"

namespace adamant::programs {
namespace {

// Into how many parts each batch is cut, which are contributions to its step. 1: it is a step of its own.
int PartsOfBatch(const TrainingPlan& plan) { return std::max(plan.accumulate, plan.synchronous ? plan.workers : 1); }

v1::ParameterSetSpec Spec(const std::string& name, const Mlp& mlp, const TrainingPlan& plan) {
  v1::ParameterSetSpec spec = NetworkSpec(name, mlp, plan.group);
  spec.set_device(plan.device);
  if (plan.clipping.bound_case() != v1::Clipping::BOUND_NOT_SET) *spec.mutable_clipping() = plan.clipping;
  if (const int parts = PartsOfBatch(plan); parts > 1) {
    spec.mutable_workers()->set_count(parts);
    spec.mutable_workers()->set_round_timeout_seconds(absl::ToDoubleSeconds(kRoundTimeout));
    // One after the other they need no room to arrive side by side.
    if (plan.accumulate > 1) spec.mutable_workers()->set_window(1);
  } else {
    spec.set_max_staleness(plan.workers - 1);
  }
  return spec;
}

// What workers share: what each of them is to do next, and what has come of it. Thread-safe.
class Course {
 public:
  // A part of a batch, which may be all of it.
  struct Task {
    int epoch;
    int part;  // which one of its batch, from 0
    const Batch* samples;
  };

  // `after_step` outlives this.
  Course(const TrainingPlan& plan, StepCallback after_step)
      : parts_of_batch_(PartsOfBatch(plan)), samples_(plan.data.samples), after_step_(after_step) {
    const std::vector<Batch> batches = SplitIntoBatches(plan.data, plan.batch_size);
    for (const Batch& batch : batches) {
      for (Batch& part : SplitEvenly(batch, parts_of_batch_)) parts_.push_back(std::move(part));
    }
    tasks_ = plan.epochs * static_cast<int64_t>(parts_.size());
    progress_.steps_in_all = plan.epochs * static_cast<int64_t>(batches.size());
    next_tasks_.resize(plan.synchronous ? plan.workers : 1);
    std::iota(next_tasks_.begin(), next_tasks_.end(), 0);
  }

  // The next task of this worker. Nothing once all are given out, or the training has ended early. Where a step has
  // parts, those of the next one wait until it is done: so nobody contributes to a step that others will not make.
  std::optional<Task> NextTask(int worker) {
    std::unique_lock<std::mutex> lock(mutex_);
    int64_t& next = next_tasks_[worker % next_tasks_.size()];
    const int64_t task = next;
    if (parts_of_batch_ > 1) {
      step_done_.wait(lock, [&] { return progress_.steps_done == task / parts_of_batch_ || !status_.ok(); });
    }
    if (task >= tasks_ || !status_.ok()) return std::nullopt;
    next += static_cast<int64_t>(next_tasks_.size());
    return Task{.epoch = static_cast<int>(task / parts_.size()) + 1,
                .part = static_cast<int>(task % parts_of_batch_),
                .samples = &parts_[task % parts_.size()]};
  }

  // Its loss, and how long the remote call took.
  void Finish(const Task& task, float loss, absl::Duration call_time) {
    std::lock_guard<std::mutex> lock(mutex_);
    call_times_.push_back(call_time);
    Epoch& epoch = open_[task.epoch];
    epoch.sum += static_cast<double>(loss) * task.samples->samples;
    epoch.samples += task.samples->samples;
    if (++parts_done_ < parts_of_batch_) return;
    parts_done_ = 0;
    ++progress_.steps_done;
    TellProgress(task.epoch);
    step_done_.notify_all();
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
    const auto middle = call_times_.begin() + call_times_.size() / 2;
    std::nth_element(call_times_.begin(), middle, call_times_.end());
    return TrainingSummary{.steps = progress_.steps_done, .elapsed = elapsed, .median_step = *middle};
  }

 private:
  struct Epoch {
    double sum = 0;
    int samples = 0;
  };

  // After a step of this epoch.
  void TellProgress(int epoch) {
    do {
      const Epoch& of = open_[epoch];
      progress_.epoch = epoch;
      progress_.epoch_done = epoch == open_.begin()->first && of.samples == samples_;
      progress_.loss = of.sum / of.samples;
      if (!after_step_(progress_)) EndLocked(absl::CancelledError("interrupted"));
      if (!progress_.epoch_done) return;
      open_.erase(epoch++);
    } while (!open_.empty() && open_.begin()->first == epoch && open_.begin()->second.samples == samples_);
  }

  void EndLocked(const absl::Status& status) {
    status_.Update(status);
    step_done_.notify_all();
  }

  const int parts_of_batch_;
  const int samples_;
  std::vector<Batch> parts_;  // of all batches, which are those of each epoch
  int64_t tasks_;             // of all epochs
  const StepCallback after_step_;
  const absl::Time start_ = absl::Now();

  std::mutex mutex_;
  std::condition_variable step_done_;  // or the training has ended
  // What follows is guarded by `mutex_`.
  // Counted over all epochs: of each worker, who takes every so many'th, or one that all of them share.
  std::vector<int64_t> next_tasks_;
  int parts_done_ = 0;         // of the step that is being made
  std::map<int, Epoch> open_;  // those that are not done
  TrainingProgress progress_;
  std::vector<absl::Duration> call_times_;
  absl::Status status_;
};

// One worker: takes tasks until there are none, and starts from `parameters`, which are those of `stream`'s step.
void Work(const TrainingPlan& plan, int worker, Mlp mlp, std::vector<float> parameters, StepStream stream,
          Course* course) {
  std::vector<float> gradient(parameters.size());
  const auto parameter_spans = SplitByTensor(mlp, absl::MakeSpan(parameters));
  const auto gradient_spans = SplitByTensor(mlp, absl::MakeConstSpan(gradient));
  const int parts = PartsOfBatch(plan);
  StepOptions options = {
      .gradient_dtype = plan.dtype, .reply_dtype = plan.dtype, .asynchronous = plan.workers > 1 && !plan.synchronous};
  while (const std::optional<Course::Task> task = course->NextTask(worker)) {
    if (parts > 1) {
      // The gradient of a part is a mean over its samples, and that of the batch the mean of those, weighted by them.
      options.contribution = {.rank = task->part,
                              .weight = static_cast<double>(task->samples->samples),
                              .ack_when_folded = plan.accumulate > 1 && task->part + 1 < parts};
    }
    bool again;
    do {
      const float loss = mlp.LossAndGradient(parameters, *task->samples, absl::MakeSpan(gradient));
      const absl::Time sent = absl::Now();
      const absl::StatusOr<v1::StepResult> result = stream.Step(gradient_spans, parameter_spans, options);
      const absl::Duration call_time = absl::Now() - sent;
      if (!result.ok()) return course->End(result.status());
      again = false;
      switch (result->outcome()) {
        case v1::STEP_OUTCOME_APPLIED:
        case v1::STEP_OUTCOME_ACCUMULATED:
          course->Finish(*task, loss, call_time);
          break;
        case v1::STEP_OUTCOME_REFUSED_STALE:
          // It brought the parameters of now: the same batch once more, from there.
          again = !course->ended();
          break;
        case v1::STEP_OUTCOME_REFUSED_LATE:
          return course->End(absl::AbortedError("a contribution to it has not come in time"));
        default:
          return course->End(absl::FailedPreconditionError("skipped: the gradient is not finite"));
      }
    } while (again);
  }
}

absl::StatusOr<TrainingSummary> TrainSet(const TrainingPlan& plan, const std::string& name, const Mlp& mlp,
                                         Client& client, StepCallback after_step) {
  const std::vector<float> parameters = InitialParameters(plan.widths, plan.seed);
  const auto written = client.WriteParameters(name, SplitByTensor(mlp, absl::MakeConstSpan(parameters)));
  if (!written.ok()) return Annotate(written.status(), "cannot write the first parameters");
  // All of them before the first step, for they stand at the first parameters.
  std::vector<StepStream> streams;
  for (int i = 0; i < plan.workers; ++i) {
    absl::StatusOr<StepStream> stream = client.OpenStepStream(name);
    if (!stream.ok()) return Annotate(stream.status(), "cannot open a stream of steps");
    streams.push_back(*std::move(stream));
  }

  Course course(plan, after_step);
  const auto work = [&](int i) { Work(plan, i, mlp, parameters, std::move(streams[i]), &course); };
  std::vector<std::thread> others;
  for (int i = 1; i < plan.workers; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
  return course.Summarize();
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
  const absl::Status deleted = DeleteSet(name, client);
  if (summary.ok() && !deleted.ok()) return Annotate(deleted, absl::StrCat("cannot delete the set ", name));
  return summary;
}

}  // namespace adamant::programs
