// What a trainer prints, taken apart.
#ifndef ADAMANT_TESTS_E2E_PROGRAM_OUTPUT_H_
#define ADAMANT_TESTS_E2E_PROGRAM_OUTPUT_H_

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace adamant::e2e {

inline std::vector<std::string> Lines(const std::string& text) { return absl::StrSplit(text, '\n', absl::SkipEmpty()); }

// The losses in lines such as `Epoch 05: loss = 0.809774`.
inline std::vector<double> Losses(const std::string& output) {
  std::vector<double> losses;
  for (const std::string& line : Lines(output)) {
    const std::vector<std::string> parts = absl::StrSplit(line, " = ");
    double loss;
    if (parts.size() == 2 && absl::SimpleAtod(parts[1], &loss)) losses.push_back(loss);
  }
  return losses;
}

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_PROGRAM_OUTPUT_H_
