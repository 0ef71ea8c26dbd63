// Changes of a set: tensors that are added, configuration that is updated.
#ifndef ADAMANT_TESTS_CORE_SET_CHANGES_H_
#define ADAMANT_TESTS_CORE_SET_CHANGES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/set/parameter_set.h"
#include "tests/core/gate.h"
#include "tests/core/sequential_model.h"

namespace adamant::core {

inline absl::StatusOr<v1::ParameterSet> AddTensors(ParameterSet* set, const v1::AddTensorsRequest& request) {
  struct Outcome {
    Gate gate;
    absl::StatusOr<v1::ParameterSet> set;
  };
  auto outcome = std::make_shared<Outcome>();
  set->AddTensors(request, [outcome](absl::StatusOr<v1::ParameterSet> grown) {
    outcome->set = std::move(grown);
    outcome->gate.Open();
  });
  outcome->gate.Pass();
  return std::move(outcome->set);
}

// Changes the configuration.
template <typename Request>
absl::StatusOr<v1::ParameterSet> Update(ParameterSet* set, const Request& request) {
  struct Outcome {
    Gate gate;
    absl::StatusOr<v1::ParameterSet> set;
  };
  auto outcome = std::make_shared<Outcome>();
  set->Update(request, [outcome](absl::StatusOr<v1::ParameterSet> changed) {
    outcome->set = std::move(changed);
    outcome->gate.Open();
  });
  outcome->gate.Pass();
  return std::move(outcome->set);
}

// One tensor of each of these sizes, of a group that the set has or gets.
inline v1::AddTensorsRequest Tensors(const std::vector<int64_t>& sizes, const std::string& group = "slow") {
  v1::AddTensorsRequest request;
  for (const int64_t size : sizes) {
    v1::TensorSpec* const tensor = request.add_tensors();
    tensor->set_name(absl::StrCat("added", request.tensors_size(), "_", size));
    tensor->add_shape(size);
    tensor->set_group(group);
  }
  return request;
}

// `values`, if there are any, and so many zeros.
inline Values AndZeros(Values values, int64_t zeros) {
  values.resize(values.size() + zeros);
  return values;
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_CHANGES_H_
