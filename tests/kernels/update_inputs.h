// Updates for the tests of the kernels: their names, what they have in common, and scalars from all that are valid.
#ifndef ADAMANT_TESTS_KERNELS_UPDATE_INPUTS_H_
#define ADAMANT_TESTS_KERNELS_UPDATE_INPUTS_H_

#include <cstdint>
#include <iterator>
#include <limits>
#include <vector>

#include "kernels/scalars.h"
#include "kernels/update.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {

inline constexpr const char* kUpdateNames[kUpdates] = {"Adam",          "AdamL2",       "AdamW",    "AdamAmsgrad",
                                                       "AdamL2Amsgrad", "AdamWAmsgrad", "Sgd",      "SgdL2",
                                                       "Momentum",      "MomentumL2",   "Nesterov", "NesterovL2"};

inline constexpr bool IsAdam(Update update) { return update < kSgd; }
inline constexpr bool HasAmsgrad(Update update) { return update >= kAdamAmsgrad && update <= kAdamWAmsgrad; }

template <typename T, size_t size>
T OneOf(const T (&all)[size], RandomFloats* random) {
  return all[random->Index(size)];
}

inline GradientTransform AnyTransform(RandomFloats* random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float scales[] = {1, -1, random->Signed(0x1p-149, 0x1p127), random->Signed(0x1p-48, 0x1p48)};
  const float clips[] = {kInfinity, 1, std::fabs(random->Signed(0x1p-149, 0x1p127)),
                         std::fabs(random->Signed(1e-6, 1e6))};
  return {.scale = OneOf(scales, random), .clip = OneOf(clips, random)};
}

// For any update of that optimizer, from the whole range that is valid, ends included.
inline UpdateScalars AnyScalars(Update update, RandomFloats* random) {
  const double rates[] = {0, 1e-3, 0x1p32, random->LogUniform(0x1p-149, 0x1p32)};
  const double decays[] = {0, 1e-2, 0x1p32, random->LogUniform(0x1p-149, 0x1p32)};
  const double betas[] = {0, 0.5, 0.9, 0.999, 1 - 0x1p-20, random->Unit() * (1 - 0x1p-20)};
  const double learning_rate = OneOf(rates, random);
  const double weight_decay = OneOf(decays, random);
  const double beta1 = OneOf(betas, random);
  const double beta2 = OneOf(betas, random);
  const double all_eps[] = {1e-8, MinEps(beta2), 0x1p32, random->LogUniform(MinEps(beta2), 0x1p32)};
  const double dampenings[] = {0, 0.5, 1, random->Unit()};
  const int64_t steps[] = {1, 2, 10'000'000, static_cast<int64_t>(random->LogUniform(1, 1e7))};
  const int64_t t = OneOf(steps, random);
  return IsAdam(update) ? MakeAdamScalars({.learning_rate = learning_rate,
                                           .beta1 = beta1,
                                           .beta2 = beta2,
                                           .eps = OneOf(all_eps, random),
                                           .weight_decay = weight_decay},
                                          t, AnyTransform(random))
                        : MakeSgdScalars({.learning_rate = learning_rate,
                                          .momentum = beta1,
                                          .dampening = OneOf(dampenings, random),
                                          .weight_decay = weight_decay},
                                         t, AnyTransform(random));
}

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_KERNELS_UPDATE_INPUTS_H_
