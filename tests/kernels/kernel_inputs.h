// Inputs for the tests of the kernels: floats of every class from a seed that is printed and can be given again.
#ifndef ADAMANT_TESTS_KERNELS_KERNEL_INPUTS_H_
#define ADAMANT_TESTS_KERNELS_KERNEL_INPUTS_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

namespace adamant::kernels {

// ADAMANT_TEST_SEED where it is set, else a fresh one.
inline uint64_t PrintedSeed() {
  const char* given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  return seed;
}

// The same numbers from the same seed with every standard library. Not thread-safe.
class RandomFloats {
 public:
  explicit RandomFloats(uint64_t seed) : bits_(seed) {}

  // Uniform in [0, n).
  int64_t Index(int64_t n) { return static_cast<int64_t>(bits_() % static_cast<uint64_t>(n)); }

  // Uniform in [0, 1).
  double Unit() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }

  // Its logarithm is uniform between those of `low` and `high`, both positive.
  double LogUniform(double low, double high) { return low * std::exp2(Unit() * std::log2(high / low)); }

  // Either sign, magnitude between those two.
  float Signed(double low, double high) {
    return static_cast<float>(Index(2) == 0 ? LogUniform(low, high) : -LogUniform(low, high));
  }

  // Every class of float: ordinary ones mostly, and any bits at all, denormals, the limits, infinities and NaN.
  float Any() {
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  0x1p-126f,
                                  -0x1p-126f,
                                  0x1.fffffep-127f,
                                  std::numeric_limits<float>::max(),
                                  std::numeric_limits<float>::lowest(),
                                  std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()};
    const uint32_t any_bits = static_cast<uint32_t>(bits_());
    switch (Index(8)) {
      case 0:
        return std::bit_cast<float>(any_bits);
      case 1:
        return std::bit_cast<float>(any_bits & 0x807FFFFF);  // a denormal
      case 2:
        return kSpecial[Index(std::size(kSpecial))];
      default:
        return Signed(1e-12, 1e12);
    }
  }

 private:
  std::mt19937_64 bits_;
};

template <typename Function>
std::vector<float> Generate(int64_t size, Function&& next) {
  std::vector<float> values(size);
  for (float& value : values) value = next();
  return values;
}

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_KERNELS_KERNEL_INPUTS_H_
