#include "tests/golden/kernel_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "server/core/spec/schedule.h"

namespace adamant::golden {
namespace {

using kernels::Update;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Update UpdateOf(const v1::Adam& adam) {
  if (adam.weight_decay() == 0) return adam.amsgrad() ? kernels::kAdamAmsgrad : kernels::kAdam;
  if (adam.decoupled_weight_decay()) return adam.amsgrad() ? kernels::kAdamWAmsgrad : kernels::kAdamW;
  return adam.amsgrad() ? kernels::kAdamL2Amsgrad : kernels::kAdamL2;
}

Update UpdateOf(const v1::Sgd& sgd) {
  const bool l2 = sgd.weight_decay() > 0;
  if (sgd.momentum() == 0) return l2 ? kernels::kSgdL2 : kernels::kSgd;
  if (sgd.nesterov()) return l2 ? kernels::kNesterovL2 : kernels::kNesterov;
  return l2 ? kernels::kMomentumL2 : kernels::kMomentum;
}

Element<float> ElementOf(const KernelRun::Tensor& tensor, size_t i) {
  return {tensor.parameters[i], {tensor.slots[0][i], tensor.slots[1][i], tensor.slots[2][i]}};
}

bool Maximizes(const v1::ParameterGroup& group) {
  return group.has_sgd() ? group.sgd().maximize() : group.adam().maximize();
}

// What clip_grad_norm_ multiplies the gradients with.
double ClipCoefficient(double clip_norm, double sum_of_squares) {
  return clip_norm == 0 ? 1 : std::min(1.0, clip_norm / (std::sqrt(sum_of_squares) + 1e-6));
}

}  // namespace

kernels::Recipe RecipeOf(const v1::ParameterGroup& group, double learning_rate, int64_t t,
                         const kernels::GradientTransform& transform) {
  if (group.has_sgd()) {
    const v1::Sgd& sgd = group.sgd();
    return {UpdateOf(sgd), kernels::MakeSgdScalars({.learning_rate = learning_rate,
                                                    .momentum = sgd.momentum(),
                                                    .dampening = sgd.dampening(),
                                                    .weight_decay = sgd.weight_decay()},
                                                   t, transform)};
  }
  const v1::Adam& adam = group.adam();
  return {UpdateOf(adam), kernels::MakeAdamScalars({.learning_rate = learning_rate,
                                                    .beta1 = adam.beta1(),
                                                    .beta2 = adam.beta2(),
                                                    .eps = adam.eps(),
                                                    .weight_decay = adam.weight_decay()},
                                                   t, transform)};
}

KernelRun::KernelRun(const OptimizerCase& golden, const kernels::KernelTable& kernels, MakeRecipe make_recipe)
    : golden_(golden), kernels_(kernels), make_recipe_(std::move(make_recipe)), tensors_(kTensors) {
  for (int i = 0; i < kTensors; ++i) {
    tensors_[i].parameters = FirstParameters(i);
    for (std::vector<float>& slot : tensors_[i].slots) slot.resize(kSizes[i]);
    tensors_[i].errors.resize(kSizes[i]);
  }
}

void KernelRun::Step() {
  ++step_;
  std::vector<float> gradients[kTensors];  // empty: the step lacks the tensor
  double sum_of_squares = 0;
  for (int i = 0; i < kTensors; ++i) {
    if (!IsPresent(golden_, i, step_)) continue;
    gradients[i] = Gradient(golden_, i, step_);
    sum_of_squares += kernels_.measure(gradients[i].data(), kSizes[i]).sum_of_squares;
  }
  const double coefficient = ClipCoefficient(golden_.clip_norm(), sum_of_squares);
  const v1::ParameterGroup& group = golden_.group();
  ExactStep exact = {
      .learning_rate = core::ScheduledLearningRate(group.schedule(), group.learning_rate(), step_ - 1),
      .scale = Maximizes(group) ? -coefficient : coefficient,
      .clip = golden_.clip_value() > 0 ? golden_.clip_value() : kInfinity,
      .t = 0,  // each tensor has its own
  };
  for (int i = 0; i < kTensors; ++i) {
    if (gradients[i].empty()) continue;
    exact.t = ++tensors_[i].update_count;
    StepTensor(gradients[i], exact, &tensors_[i]);
  }
}

void KernelRun::StepTensor(const std::vector<float>& gradient, const ExactStep& step, Tensor* tensor) {
  const Tensor before = *tensor;
  const auto [update, scalars] =
      make_recipe_(golden_.group(), step.learning_rate, step.t,
                   {.scale = static_cast<float>(step.scale), .clip = static_cast<float>(step.clip)});
  kernels::UpdateSpan span = {
      static_cast<int64_t>(gradient.size()), gradient.data(), before.parameters.data(), tensor->parameters.data(), {}};
  for (int k = 0; k < kernels::kMaxSlots; ++k) span.slots[k] = {before.slots[k].data(), tensor->slots[k].data()};
  kernels_.update[update](scalars, span);
  for (size_t i = 0; i < gradient.size(); ++i) {
    tensor->errors[i] =
        NextErrors(golden_.group(), step, gradient[i], ElementOf(before, i), ElementOf(*tensor, i), before.errors[i]);
  }
}

std::vector<std::vector<double>> GoldenSlots(const OptimizerCase& golden, const golden::Tensor& tensor) {
  const auto copy = [](const google::protobuf::RepeatedField<double>& field) {
    return std::vector<double>(field.begin(), field.end());
  };
  if (golden.group().has_sgd()) return {copy(tensor.momentum_buffer())};
  return {copy(tensor.exp_avg()), copy(tensor.exp_avg_sq()), copy(tensor.max_exp_avg_sq())};
}

}  // namespace adamant::golden
