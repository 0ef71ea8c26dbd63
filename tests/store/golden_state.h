// What is to be found in a data directory of tests/store/golden.
#ifndef ADAMANT_TESTS_STORE_GOLDEN_STATE_H_
#define ADAMANT_TESTS_STORE_GOLDEN_STATE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "tests/store/store_life.h"

namespace adamant::store {

// The sets that are in each, and the most steps that one of them has had.
inline const std::vector<std::string> kGoldenSets = {"inline", "slots", "rows", "rounds", "points"};
inline constexpr int kGoldenSteps = 12;

// The id of a set's step number `step` there.
std::string GoldenStepId(absl::string_view set, int step);

// One fact a line: states, configurations, checksums of all arrays, and the results of the steps that are remembered. A
// set that was taken back has another incarnation at each start, which is not among them.
std::string GoldenStateOf(StoreServer* server);

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_GOLDEN_STATE_H_
