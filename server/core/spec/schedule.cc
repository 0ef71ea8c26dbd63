// The schedules' equations, each as torch.optim.lr_scheduler has it in closed form: torch itself goes from one step to
// the next, and rounds at each.
#include "server/core/spec/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"

namespace adamant::core {
namespace {

constexpr int kMaxMilestones = 64;
constexpr double kMaxPower = 64;

absl::Status ValidateCount(int64_t value, int64_t lowest, absl::string_view field) {
  if (value >= lowest) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("at least ", lowest), absl::StrCat(value));
}

// A NaN is outside of every range.
absl::Status ValidateWithin(double value, double highest, absl::string_view field) {
  if (value >= 0 && value <= highest) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("[0, ", Spelled(highest), "]"), Spelled(value));
}

absl::Status ValidatePositive(double value, double highest, absl::string_view field) {
  if (value > 0 && value <= highest) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("(0, ", Spelled(highest), "]"), Spelled(value));
}

absl::Status ValidateMilestones(const google::protobuf::RepeatedField<int64_t>& milestones, absl::string_view field) {
  if (milestones.empty() || milestones.size() > kMaxMilestones) {
    return InvalidField(field, absl::StrCat("1 to ", kMaxMilestones, " of them"), absl::StrCat(milestones.size()));
  }
  int64_t before = 0;
  for (int i = 0; i < milestones.size(); ++i) {
    if (milestones[i] <= before) {
      return InvalidField(absl::StrCat(field, "[", i, "]"), absl::StrCat("more than ", before),
                          absl::StrCat(milestones[i]));
    }
    before = milestones[i];
  }
  return absl::OkStatus();
}

absl::Status ValidateDecay(const v1::Schedule& schedule, absl::string_view path) {
  const auto field = [path](absl::string_view name) { return absl::StrCat(path, ".", name); };
  absl::Status status;
  switch (schedule.decay_case()) {
    case v1::Schedule::DECAY_NOT_SET:
      break;
    case v1::Schedule::kLinear:
      status = ValidateCount(schedule.linear().steps(), 1, field("linear.steps"));
      status.Update(ValidateWithin(schedule.linear().end_factor(), 1, field("linear.end_factor")));
      break;
    case v1::Schedule::kCosine:
      status = ValidateCount(schedule.cosine().steps(), 1, field("cosine.steps"));
      break;
    case v1::Schedule::kExponential:
      status = ValidatePositive(schedule.exponential().gamma(), 1, field("exponential.gamma"));
      break;
    case v1::Schedule::kStep:
      status = ValidateCount(schedule.step().steps(), 1, field("step.steps"));
      status.Update(ValidatePositive(schedule.step().gamma(), 1, field("step.gamma")));
      break;
    case v1::Schedule::kMultiStep:
      status = ValidateMilestones(schedule.multi_step().milestones(), field("multi_step.milestones"));
      status.Update(ValidatePositive(schedule.multi_step().gamma(), 1, field("multi_step.gamma")));
      break;
    case v1::Schedule::kPolynomial:
      status = ValidateCount(schedule.polynomial().steps(), 1, field("polynomial.steps"));
      status.Update(ValidatePositive(schedule.polynomial().power(), kMaxPower, field("polynomial.power")));
      break;
  }
  return status;
}

// How much of `steps` has passed after `k`, in [0, 1].
double Progress(int64_t k, int64_t steps) {
  return static_cast<double>(std::min(k, steps)) / static_cast<double>(steps);
}

// `k` steps after the warmup; the cosine alone knows of the floor.
double Decayed(const v1::Schedule& schedule, double learning_rate, int64_t k) {
  switch (schedule.decay_case()) {
    case v1::Schedule::DECAY_NOT_SET:
      return learning_rate;
    case v1::Schedule::kLinear: {
      const v1::LinearDecay& linear = schedule.linear();
      return learning_rate * (1 + (linear.end_factor() - 1) * Progress(k, linear.steps()));
    }
    case v1::Schedule::kCosine: {
      const double floor = schedule.floor();
      const double angle = std::numbers::pi * Progress(k, schedule.cosine().steps());
      return floor + (learning_rate - floor) * (1 + std::cos(angle)) / 2;
    }
    case v1::Schedule::kExponential:
      return learning_rate * std::pow(schedule.exponential().gamma(), static_cast<double>(k));
    case v1::Schedule::kStep: {
      const int64_t passed = k / schedule.step().steps();
      return learning_rate * std::pow(schedule.step().gamma(), static_cast<double>(passed));
    }
    case v1::Schedule::kMultiStep: {
      const auto& milestones = schedule.multi_step().milestones();
      const auto passed = std::upper_bound(milestones.begin(), milestones.end(), k) - milestones.begin();
      return learning_rate * std::pow(schedule.multi_step().gamma(), static_cast<double>(passed));
    }
    case v1::Schedule::kPolynomial: {
      const v1::PolynomialDecay& polynomial = schedule.polynomial();
      return learning_rate * std::pow(1 - Progress(k, polynomial.steps()), polynomial.power());
    }
  }
  return learning_rate;
}

}  // namespace

absl::Status ValidateSchedule(const v1::Schedule& schedule, double learning_rate, absl::string_view path) {
  absl::Status status = ValidateCount(schedule.warmup_steps(), 0, absl::StrCat(path, ".warmup_steps"));
  status.Update(ValidateWithin(schedule.warmup_start_factor(), 1, absl::StrCat(path, ".warmup_start_factor")));
  status.Update(ValidateWithin(schedule.floor(), learning_rate, absl::StrCat(path, ".floor")));
  status.Update(ValidateDecay(schedule, path));
  return status;
}

double ScheduledLearningRate(const v1::Schedule& schedule, double learning_rate, int64_t step) {
  const int64_t warmup_steps = schedule.warmup_steps();
  if (step < warmup_steps) {
    const double start = schedule.warmup_start_factor();
    return learning_rate * (start + (1 - start) * Progress(step, warmup_steps));
  }
  // Never above it either: the cosine's rounding could end there, and what is permitted for a group depends on its
  // learning rate.
  return std::max(schedule.floor(), std::min(Decayed(schedule, learning_rate, step - warmup_steps), learning_rate));
}

}  // namespace adamant::core
