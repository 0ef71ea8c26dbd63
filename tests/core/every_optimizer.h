// The optimizers that a set's groups may have, each alone and beside others. Knows no test framework.
#ifndef ADAMANT_TESTS_CORE_EVERY_OPTIMIZER_H_
#define ADAMANT_TESTS_CORE_EVERY_OPTIMIZER_H_

#include <cstdlib>
#include <string>

#include "adamant/v1/parameter_set.pb.h"
#include "google/protobuf/text_format.h"

namespace adamant::core {

// Groups in text, one for each of the two of SmallSpec and LargeSpec, without their names.
struct Groups {
  const char* name;
  const char* slow;
  const char* fast;
};

inline constexpr Groups kEveryOptimizer[] = {
    {"Adam", "learning_rate: 0.001", "learning_rate: 0.01"},
    {"AdamL2", "learning_rate: 0.001 adam { weight_decay: 0.1 }", "adam { beta1: 0.5 weight_decay: 2 maximize: true }"},
    {"AdamW", "adam { weight_decay: 0.01 decoupled_weight_decay: true }", "learning_rate: 0.1"},
    {"Amsgrad", "adam { amsgrad: true }", "adam { weight_decay: 0.5 amsgrad: true }"},
    {"SomeAmsgrad", "adam { amsgrad: true weight_decay: 0.1 decoupled_weight_decay: true }", "learning_rate: 0.01"},
    {"Sgd", "learning_rate: 0.1 sgd {}", "learning_rate: 0.01 sgd { weight_decay: 0.1 }"},
    {"Momentum", "sgd { momentum: 0.9 }", "sgd { momentum: 0.5 dampening: 0.25 weight_decay: 0.1 maximize: true }"},
    {"Nesterov", "sgd { momentum: 0.9 nesterov: true }", "sgd { momentum: 0.5 nesterov: true weight_decay: 0.1 }"},
    {"AdamBesideSgd", "learning_rate: 0.01", "learning_rate: 0.1 sgd { momentum: 0.9 nesterov: true }"},
    {"SgdBesideAmsgrad", "learning_rate: 0.01 sgd {}", "learning_rate: 0.1 adam { amsgrad: true }"},
};

// `spec`, one of those, with these groups.
inline v1::ParameterSetSpec WithGroups(v1::ParameterSetSpec spec, const Groups& groups) {
  const char* const texts[] = {groups.slow, groups.fast};
  for (int i = 0; i < 2; ++i) {
    const std::string name = spec.groups(i).name();
    if (!google::protobuf::TextFormat::ParseFromString(texts[i], spec.mutable_groups(i))) std::abort();
    spec.mutable_groups(i)->set_name(name);
  }
  return spec;
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_EVERY_OPTIMIZER_H_
