// A golden case, run by a kernel alone, with bounds of what fp32 may cost: the link between PyTorch, which is within
// the bounds, and whatever else runs the case, which has the same bits.
#ifndef ADAMANT_TESTS_GOLDEN_KERNEL_RUN_H_
#define ADAMANT_TESTS_GOLDEN_KERNEL_RUN_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/update.h"
#include "tests/golden/error_bound.h"
#include "tests/golden/inputs.h"

namespace adamant::golden {

// What a kernel needs for a step that brings a tensor of `group` to its update number `t`.
using MakeRecipe = std::function<kernels::Recipe(const v1::ParameterGroup& group, double learning_rate, int64_t t,
                                                 const kernels::GradientTransform& transform)>;

// What is right.
kernels::Recipe RecipeOf(const v1::ParameterGroup& group, double learning_rate, int64_t t,
                         const kernels::GradientTransform& transform);

// Not thread-safe.
class KernelRun {
 public:
  struct Tensor {
    int64_t update_count = 0;
    std::vector<float> parameters;
    std::vector<float> slots[kernels::kMaxSlots];  // in the order of kSlotCounts; those that there are not are zero
    std::vector<Element<double>> errors;           // bounds, by element
  };

  // Before the first step. Requires: `golden` and `kernels` outlive this.
  KernelRun(const OptimizerCase& golden, const kernels::KernelTable& kernels, MakeRecipe make_recipe = RecipeOf);

  // Applies the next step.
  void Step();

  // Applies steps up to number `step`.
  void StepTo(int64_t step) {
    while (step_ < step) Step();
  }

  // Of the last step; 0 before the first.
  int64_t step() const { return step_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  void StepTensor(const std::vector<float>& gradient, const ExactStep& step, Tensor* tensor);

  const OptimizerCase& golden_;
  const kernels::KernelTable& kernels_;
  const MakeRecipe make_recipe_;
  int64_t step_ = 0;
  std::vector<Tensor> tensors_;
};

// What the golden file has of the slots in the order of KernelRun's; empty for those that the optimizer lacks.
std::vector<std::vector<double>> GoldenSlots(const OptimizerCase& golden, const golden::Tensor& tensor);

}  // namespace adamant::golden

#endif  // ADAMANT_TESTS_GOLDEN_KERNEL_RUN_H_
