// What generate.py has, too.
#include "tests/golden/inputs.h"

#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/text_format.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iostream>
#include <string>

namespace adamant::golden {
namespace {

// 64 random bits, the same for the same numbers: each goes through splitmix64's finalizer.
uint64_t Mixed(std::initializer_list<int64_t> numbers) {
  uint64_t z = 0;
  for (const int64_t number : numbers) {
    z += static_cast<uint64_t>(number) + 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
  }
  return z;
}

// A float of either sign whose exponent is in [lowest, highest], each as likely.
float MakeFloat(uint64_t bits, int lowest, int highest) {
  const int exponent = lowest + static_cast<int>((bits >> 32) % static_cast<uint64_t>(highest - lowest + 1));
  const double magnitude = std::ldexp(1 + static_cast<double>(bits & 0x7FFFFF) * 0x1p-23, exponent);
  return static_cast<float>((bits >> 23 & 1) != 0 ? -magnitude : magnitude);
}

float GradientElement(int kinds, int tensor, int64_t element, int64_t step) {
  const uint64_t bits = Mixed({2, tensor, element, step});
  switch (element % kinds) {
    case 0:  // of either sign
      return MakeFloat(bits, -6, 0);
    case 1:  // always up
      return std::fabs(MakeFloat(bits, -1, 0));
    case 2:  // one step in 16
      return (bits >> 24 & 15) == 0 ? MakeFloat(bits, -6, 0) : 0;
    case 3:  // any
      return MakeFloat(bits, -39, 38);
    case 4:  // large
      return MakeFloat(bits, 30, 38);
    default:  // small
      return MakeFloat(bits, -39, -30);
  }
}

template <typename Cases>
Cases Read(const std::string& name) {
  const std::string path = ADAMANT_GOLDEN_DIRECTORY "/" + name;
  std::ifstream file(path);
  google::protobuf::io::IstreamInputStream stream(&file);
  Cases cases;
  if (!file || !google::protobuf::TextFormat::Parse(&stream, &cases)) {
    std::cerr << path << " cannot be read\n";
    std::exit(1);
  }
  return cases;
}

}  // namespace

OptimizerCases ReadOptimizerCases() { return Read<OptimizerCases>("optimizers.textproto"); }

ScheduleCases ReadScheduleCases() { return Read<ScheduleCases>("schedules.textproto"); }

std::vector<float> FirstParameters(int tensor) {
  std::vector<float> parameters(kSizes[tensor]);
  for (size_t i = 0; i < parameters.size(); ++i) {
    parameters[i] = MakeFloat(Mixed({1, tensor, static_cast<int64_t>(i)}), -6, 0);
  }
  return parameters;
}

std::vector<float> Gradient(const OptimizerCase& golden, int tensor, int64_t step) {
  std::vector<float> gradient(kSizes[tensor]);
  for (size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = GradientElement(golden.gradient_kinds(), tensor, static_cast<int64_t>(i), step);
  }
  return gradient;
}

bool IsPresent(const OptimizerCase& golden, int tensor, int64_t step) {
  if (!golden.partial()) return true;
  if (tensor == 2) return step > golden.checkpoints().rbegin()->step() / 2;
  return Mixed({3, tensor, step}) % 8 < (tensor == 0 ? 6 : 1);
}

}  // namespace adamant::golden
