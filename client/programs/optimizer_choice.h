// What the flags of a trainer say of its optimizer, as the server understands it.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_CLIENT_PROGRAMS_OPTIMIZER_CHOICE_H_
#define ADAMANT_CLIENT_PROGRAMS_OPTIMIZER_CHOICE_H_

#include <adamant/client.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant::programs {

struct OptimizerChoice {
  // `adam`, `adamw` or `sgd`.
  std::string optimizer = "adam";
  double learning_rate = 1e-3;
  // Not given: 0.01 for `adamw`, as PyTorch has it, else 0.
  std::optional<double> weight_decay = std::nullopt;
  // Of `sgd` alone.
  double momentum = 0;
  // `constant`; `linear`, `cosine` or `polynomial:POWER`, down to zero at the last step; `exponential:GAMMA`, by that
  // factor a step; or `step:STEPS:GAMMA`, every so many steps.
  std::string schedule = "constant";
  // Steps in which the learning rate rises before that.
  int64_t warmup_steps = 0;
};

// The choice as a group of a set that takes `steps` steps in all, at least 1. What is not chosen is left to the
// server's defaults, and so are ranges of values. INVALID_ARGUMENT for what there is not, or what does not go together.
absl::StatusOr<v1::ParameterGroup> MakeGroup(const OptimizerChoice& choice, int64_t steps);

// `float32`, `bfloat16` or `float16`. INVALID_ARGUMENT for anything else.
absl::StatusOr<v1::Dtype> ParseDtype(absl::string_view name);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_OPTIMIZER_CHOICE_H_
