// The golden files, and the inputs that are not in them: generate.py makes those with the same bits. For the kernels'
// tests and for those that drive the same cases through more of the server. Thread-safe: there is no state.
#ifndef ADAMANT_TESTS_GOLDEN_INPUTS_H_
#define ADAMANT_TESTS_GOLDEN_INPUTS_H_

#include <cstdint>
#include <vector>

#include "tests/golden/golden.pb.h"

namespace adamant::golden {

// Elements of each tensor of a case.
inline constexpr int64_t kSizes[] = {13, 1, 18};
inline constexpr int kTensors = 3;

// What optimizers.textproto and schedules.textproto hold. A file that cannot be read ends the program.
OptimizerCases ReadOptimizerCases();
ScheduleCases ReadScheduleCases();

// The elements of a tensor before the first step.
std::vector<float> FirstParameters(int tensor);

// A tensor's gradient in step number `step`, from 1: each element is zero or of a magnitude in [1e-12, 1e12].
std::vector<float> Gradient(const OptimizerCase& golden, int tensor, int64_t step);

// Whether step number `step`, from 1, has the tensor. Of partial steps most have the first, few the second, and those
// of the second half the third.
bool IsPresent(const OptimizerCase& golden, int tensor, int64_t step);

}  // namespace adamant::golden

#endif  // ADAMANT_TESTS_GOLDEN_INPUTS_H_
