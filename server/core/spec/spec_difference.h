// Whether two specifications ask for the same set.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_SERVER_CORE_SPEC_SPEC_DIFFERENCE_H_
#define ADAMANT_SERVER_CORE_SPEC_SPEC_DIFFERENCE_H_

#include <optional>
#include <string>

#include "adamant/v1/parameter_set.pb.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"

namespace adamant::core {

// A specification that was checked, with every default resolved.
struct CheckedSpec {
  const Configuration& configuration;
  const Schema& schema;
  v1::Initialization initialization;
  std::string device;
};

// A field, such as `spec.tensors[3].shape`, and its value in each of two specifications.
struct SpecDifference {
  std::string field;
  std::string expected;
  std::string got;
};

// The first field in which `got` differs from `expected`, or nothing: of the groups, then of the tensors, each in
// order, then the initialization, the device, and what holds for all groups. Hyperparameters are compared as the
// kernels see them, rounded to float. Labels take no part: they say what a set is for, not what it is.
std::optional<SpecDifference> FindDifference(const CheckedSpec& expected, const CheckedSpec& got);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_SPEC_DIFFERENCE_H_
