// The widths of a network's layers, as a flag such as --layers=2,16,1.
#ifndef ADAMANT_CLIENT_PROGRAMS_LAYER_WIDTHS_H_
#define ADAMANT_CLIENT_PROGRAMS_LAYER_WIDTHS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace adamant::programs {

// Inputs, units of each hidden layer, outputs.
struct LayerWidths {
  std::vector<int> values;
};

// Abseil's flag interface. Two to 64 numbers in [1, 65536] with commas between them; else false, and what is wrong.
bool AbslParseFlag(absl::string_view text, LayerWidths* widths, std::string* error);
std::string AbslUnparseFlag(const LayerWidths& widths);

}  // namespace adamant::programs

#endif  // ADAMANT_CLIENT_PROGRAMS_LAYER_WIDTHS_H_
