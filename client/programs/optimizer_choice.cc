#include "client/programs/optimizer_choice.h"

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace adamant::programs {
namespace {

absl::Status SetOptimizer(const OptimizerChoice& choice, v1::ParameterGroup* group) {
  if (choice.momentum != 0 && choice.optimizer != "sgd") {
    return absl::InvalidArgumentError("a momentum is for the optimizer sgd: adam has its betas");
  }
  if (choice.optimizer == "sgd") {
    if (choice.momentum != 0) group->mutable_sgd()->set_momentum(choice.momentum);
    group->mutable_sgd()->set_weight_decay(choice.weight_decay.value_or(0));
  } else if (choice.optimizer == "adamw") {
    group->mutable_adam()->set_decoupled_weight_decay(true);
    group->mutable_adam()->set_weight_decay(choice.weight_decay.value_or(0.01));
  } else if (choice.optimizer == "adam") {
    if (choice.weight_decay.has_value()) group->mutable_adam()->set_weight_decay(*choice.weight_decay);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("the optimizer is adam, adamw or sgd, and not '", choice.optimizer, "'"));
  }
  return absl::OkStatus();
}

absl::Status SetSchedule(const OptimizerChoice& choice, int64_t steps, v1::ParameterGroup* group) {
  if (choice.warmup_steps < 0 || choice.warmup_steps >= steps) {
    return absl::InvalidArgumentError(absl::StrCat("the warmup must end before the last of the ", steps,
                                                   " steps, and not take ", choice.warmup_steps));
  }
  if (choice.warmup_steps > 0) group->mutable_schedule()->set_warmup_steps(choice.warmup_steps);
  const int64_t left = steps - choice.warmup_steps;
  // The name of a schedule, and what it takes.
  const std::vector<absl::string_view> words = absl::StrSplit(choice.schedule, ':');
  const absl::string_view name = words.front();
  double number = 0;
  const bool one_number = words.size() == 2 && absl::SimpleAtod(words[1], &number);
  int64_t interval = 0;
  const bool an_interval_and_a_number =
      words.size() == 3 && absl::SimpleAtoi(words[1], &interval) && absl::SimpleAtod(words[2], &number);
  if (choice.schedule == "constant") return absl::OkStatus();
  v1::Schedule* const schedule = group->mutable_schedule();
  if (choice.schedule == "linear") {
    schedule->mutable_linear()->set_steps(left);
  } else if (choice.schedule == "cosine") {
    schedule->mutable_cosine()->set_steps(left);
  } else if (name == "polynomial" && one_number) {
    schedule->mutable_polynomial()->set_steps(left);
    schedule->mutable_polynomial()->set_power(number);
  } else if (name == "exponential" && one_number) {
    schedule->mutable_exponential()->set_gamma(number);
  } else if (name == "step" && an_interval_and_a_number) {
    schedule->mutable_step()->set_steps(interval);
    schedule->mutable_step()->set_gamma(number);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("the schedule is constant, linear, cosine, polynomial:POWER, exponential:GAMMA or "
                     "step:STEPS:GAMMA, and not '",
                     choice.schedule, "'"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ParameterGroup> MakeGroup(const OptimizerChoice& choice, int64_t steps) {
  v1::ParameterGroup group;
  group.set_learning_rate(choice.learning_rate);
  absl::Status status = SetOptimizer(choice, &group);
  if (status.ok()) status = SetSchedule(choice, steps, &group);
  if (!status.ok()) return status;
  return group;
}

absl::StatusOr<v1::Dtype> ParseDtype(absl::string_view name) {
  if (name == "float32") return v1::DTYPE_FLOAT32;
  if (name == "bfloat16") return v1::DTYPE_BFLOAT16;
  if (name == "float16") return v1::DTYPE_FLOAT16;
  return absl::InvalidArgumentError(absl::StrCat("the dtype is float32, bfloat16 or float16, and not '", name, "'"));
}

}  // namespace adamant::programs
