// Every instruction set's Adam gives the scalar reference's bits, whatever the input, and touches nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/adam_scalars.h"
#include "kernels/dispatch.h"
#include "kernels/update.h"
#include "tests/conformance/kernel_conformance.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::kernels {
namespace {

struct State {
  std::vector<float> p, g, m, v;

  int64_t size() const { return static_cast<int64_t>(p.size()); }
};

struct Result {
  std::vector<float> p, m, v;
};

testing::AssertionResult SameResult(const Result& expected, const Result& actual) {
  if (auto same = SameFloats(expected.p, actual.p); !same) return same << " in p";
  if (auto same = SameFloats(expected.m, actual.m); !same) return same << " in m";
  if (auto same = SameFloats(expected.v, actual.v); !same) return same << " in v";
  return testing::AssertionSuccess();
}

UpdateSpan InPlace(State* state) {
  return {.size = state->size(),
          .g = state->g.data(),
          .p_in = state->p.data(),
          .p_out = state->p.data(),
          .slots = {{state->m.data(), state->m.data()}, {state->v.data(), state->v.data()}}};
}

Result Expected(const AdamScalars& scalars, State state) {
  ScalarKernels().update[kAdam](scalars, InPlace(&state));
  return {state.p, state.m, state.v};
}

Result Actual(const KernelTable& kernels, const AdamScalars& scalars, State state) {
  kernels.update[kAdam](scalars, InPlace(&state));
  return {state.p, state.m, state.v};
}

State AnyState(int64_t size, RandomFloats* random) {
  const auto any = [&] { return random->Any(); };
  return {Generate(size, any), Generate(size, any), Generate(size, any), Generate(size, any)};
}

// As training makes it: finite, v not negative.
State OrdinaryState(int64_t size, RandomFloats* random) {
  return {Generate(size, [&] { return random->Signed(1e-4, 1); }),
          Generate(size, [&] { return random->Signed(1e-8, 1e2); }),
          Generate(size, [&] { return random->Signed(1e-8, 1e2); }),
          Generate(size, [&] { return std::fabs(random->Signed(1e-16, 1e4)); })};
}

// From the whole range that is valid, ends included.
AdamScalars AnyScalars(RandomFloats* random) {
  const auto beta = [&] {
    const double betas[] = {0, 0.5, 0.9, 0.999, 1 - 0x1p-20, random->Unit() * (1 - 0x1p-20)};
    return betas[random->Index(std::size(betas))];
  };
  AdamHyperparameters hyperparameters = {.learning_rate = 0, .beta1 = beta(), .beta2 = beta(), .eps = 0};
  const double learning_rates[] = {0, 1e-3, 0x1p32, random->LogUniform(0x1p-149, 0x1p32)};
  hyperparameters.learning_rate = learning_rates[random->Index(std::size(learning_rates))];
  const double least_eps = MinEps(hyperparameters.beta2);
  const double all_eps[] = {1e-8, least_eps, 0x1p32, random->LogUniform(least_eps, 0x1p32)};
  hyperparameters.eps = all_eps[random->Index(std::size(all_eps))];
  const int64_t steps[] = {1, 2, 10'000'000, static_cast<int64_t>(random->LogUniform(1, 1e7))};
  const float scales[] = {1, -1, random->Signed(0x1p-149, 0x1p127), random->Signed(0x1p-48, 0x1p48)};
  return MakeAdamScalars(hyperparameters, steps[random->Index(std::size(steps))],
                         scales[random->Index(std::size(scales))]);
}

AdamScalars DefaultScalars(int64_t t) {
  return MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, t, 1.0f);
}

bool IsDenormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL; }

class AdamConformanceTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& kernels() const { return *GetParam(); }
  void Adam(const AdamScalars& scalars, const UpdateSpan& span) { kernels().update[kAdam](scalars, span); }
};

TEST_P(AdamConformanceTest, EverySizeGivesTheReferencesBits) {
  RandomFloats random(PrintedSeed());
  std::vector<int64_t> sizes(301);
  std::iota(sizes.begin(), sizes.end(), 0);
  sizes.insert(sizes.end(), {4095, 4097, 65535, 65536, 65537, 100003});
  for (int64_t size : sizes) {
    const AdamScalars scalars = AnyScalars(&random);
    const State state = AnyState(size, &random);

    EXPECT_TRUE(SameResult(Expected(scalars, state), Actual(kernels(), scalars, state))) << "size " << size;
  }
}

TEST_P(AdamConformanceTest, EveryValidHyperparameterGivesTheReferencesBits) {
  RandomFloats random(PrintedSeed());
  for (int i = 0; i < 3000; ++i) {
    const AdamScalars scalars = AnyScalars(&random);
    State state = i % 2 == 0 ? AnyState(100, &random) : OrdinaryState(100, &random);
    // The threshold below which a gradient counts as zero, and its neighbours.
    state.g[0] = scalars.g_lo;
    state.g[1] = -scalars.g_lo;
    state.g[2] = std::nextafter(scalars.g_lo, 0.0f);
    state.g[3] = std::nextafter(scalars.g_lo, std::numeric_limits<float>::infinity());

    ASSERT_TRUE(SameResult(Expected(scalars, state), Actual(kernels(), scalars, state))) << "iteration " << i;
  }
}

TEST_P(AdamConformanceTest, ATrainingRunGivesTheReferencesBits) {
  RandomFloats random(PrintedSeed());
  State state = OrdinaryState(1001, &random);
  Result expected = {state.p, state.m, state.v};
  for (int64_t t = 1; t <= 300; ++t) {
    const AdamScalars scalars = DefaultScalars(t);
    state.g = Generate(state.size(), [&] { return random.Index(4) == 0 ? 0.0f : random.Signed(1e-20, 1e6); });
    expected = Expected(scalars, {expected.p, state.g, expected.m, expected.v});

    Adam(scalars, InPlace(&state));

    ASSERT_TRUE(SameResult(expected, {state.p, state.m, state.v})) << "step " << t;
  }
}

TEST_P(AdamConformanceTest, EveryAliasingAndAlignmentGivesTheReferencesBitsAndWritesNothingElse) {
  RandomFloats random(PrintedSeed());
  enum class NewParameters { kApart, kOverGradient, kOverOld };
  for (NewParameters destination : {NewParameters::kApart, NewParameters::kOverGradient, NewParameters::kOverOld}) {
    for (bool m_in_place : {false, true}) {
      for (bool v_in_place : {false, true}) {
        for (int64_t size : {0, 1, 7, 8, 9, 15, 16, 17, 33, 250}) {
          for (int64_t offset = 0; offset < 16; ++offset) {
            const AdamScalars scalars = AnyScalars(&random);
            const State state = AnyState(size, &random);
            const std::vector<float> untouched(size, 42.0f);
            // `p` lies at `offset`, the others anywhere.
            CanariedArray p(state.p, offset), g(state.g, random.Index(16)), m(state.m, random.Index(16)),
                v(state.v, random.Index(16));
            CanariedArray new_p(untouched, random.Index(16)), new_m(untouched, random.Index(16)),
                new_v(untouched, random.Index(16));
            CanariedArray& p_out = destination == NewParameters::kApart          ? new_p
                                   : destination == NewParameters::kOverGradient ? g
                                                                                 : p;
            CanariedArray& m_out = m_in_place ? m : new_m;
            CanariedArray& v_out = v_in_place ? v : new_v;

            Adam(scalars, {.size = size,
                           .g = g.data(),
                           .p_in = p.data(),
                           .p_out = p_out.data(),
                           .slots = {{m.data(), m_out.data()}, {v.data(), v_out.data()}}});

            SCOPED_TRACE(testing::Message() << "size " << size << " offset " << offset);
            ASSERT_TRUE(SameResult(Expected(scalars, state), {p_out.values(), m_out.values(), v_out.values()}));
            for (CanariedArray* array : {&p, &g, &m, &v, &new_p, &new_m, &new_v}) {
              ASSERT_TRUE(array->NothingOutsideWasWritten());
            }
            const auto expect_kept = [&](CanariedArray& array, const std::vector<float>& before, const char* name) {
              const bool written = &array == &p_out || &array == &m_out || &array == &v_out;
              EXPECT_TRUE(written || SameFloats(before, array.values())) << name;
            };
            expect_kept(p, state.p, "p_in");
            expect_kept(g, state.g, "g");
            expect_kept(m, state.m, "m_in");
            expect_kept(v, state.v, "v_in");
          }
        }
      }
    }
  }
}

TEST_P(AdamConformanceTest, TouchesNoMemoryOutsideOfTheSpan) {
  RandomFloats random(PrintedSeed());
  for (FencedArray::At at : {FencedArray::At::kBegin, FencedArray::At::kEnd}) {
    for (int64_t size = 0; size <= 70; ++size) {
      const AdamScalars scalars = AnyScalars(&random);
      const State state = AnyState(size, &random);
      FencedArray p(state.p, at), g(state.g, at), m(state.m, at), v(state.v, at);

      Adam(scalars, {.size = size,
                     .g = g.data(),
                     .p_in = p.data(),
                     .p_out = g.data(),
                     .slots = {{m.data(), m.data()}, {v.data(), v.data()}}});

      ASSERT_TRUE(SameResult(Expected(scalars, state), {g.values(), m.values(), v.values()})) << "size " << size;
    }
  }
}

TEST_P(AdamConformanceTest, MomentsOfADeadUnitReachZeroAndAreNeverDenormal) {
  // 0.95^1703 < 2^-126: both moments have gone after 2,000 steps.
  const AdamHyperparameters hyperparameters = {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
  RandomFloats random(PrintedSeed());
  State state = OrdinaryState(37, &random);
  for (float& v : state.v) v = std::min(v, 1.0f);
  std::fill(state.g.begin(), state.g.end(), 0.0f);
  for (int64_t t = 1; t <= 2000; ++t) {
    Adam(MakeAdamScalars(hyperparameters, t, 1.0f), InPlace(&state));

    ASSERT_TRUE(std::none_of(state.m.begin(), state.m.end(), IsDenormal)) << "step " << t;
    ASSERT_TRUE(std::none_of(state.v.begin(), state.v.end(), IsDenormal)) << "step " << t;
  }

  const std::vector<float> zeros(state.p.size(), 0.0f);
  const std::vector<float> p = state.p;
  EXPECT_TRUE(SameFloats(zeros, state.m));
  EXPECT_TRUE(SameFloats(zeros, state.v));
  Adam(MakeAdamScalars(hyperparameters, 2001, 1.0f), InPlace(&state));
  EXPECT_TRUE(SameFloats(p, state.p));
}

TEST_P(AdamConformanceTest, TinyGradientsNeverMakeADenormalMoment) {
  for (float scale : {1.0f, 0x1p-40f, -0x1p40f}) {
    // From the smallest denormal to 1e-12.
    for (int power = 0; power <= 142; ++power) {
      const float g = static_cast<float>(0x1p-149 * std::pow(1.7, power));
      State state = {{1, 1, 1}, {g, -g, g}, {0, 0, 0}, {0, 0, 0}};
      for (int64_t t = 1; t <= 50; ++t) {
        const AdamScalars scalars =
            MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8}, t, scale);

        Adam(scalars, InPlace(&state));

        ASSERT_TRUE(std::none_of(state.m.begin(), state.m.end(), IsDenormal)) << g << " step " << t;
        ASSERT_TRUE(std::none_of(state.v.begin(), state.v.end(), IsDenormal)) << g << " step " << t;
      }
    }
  }
}

#if defined(__x86_64__)
TEST_P(AdamConformanceTest, CallersFloatingPointEnvironmentNeitherChangesTheResultNorIsChanged) {
  RandomFloats random(PrintedSeed());
  const AdamScalars scalars = DefaultScalars(3);
  State state = AnyState(1003, &random);
  for (int64_t i = 0; i < state.size(); i += 2) state.v[i] = std::fabs(random.Signed(0x1p-126, 0x1p-100));
  const Result expected = Expected(scalars, state);
  for (unsigned int environment : FloatingPointEnvironments()) {
    State actual = state;
    const UpdateSpan span = InPlace(&actual);

    const unsigned int after = CallIn(environment, [&] { Adam(scalars, span); });

    ASSERT_EQ(after, environment);
    ASSERT_TRUE(SameResult(expected, {actual.p, actual.m, actual.v})) << "MXCSR " << environment;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryIsa, AdamConformanceTest, testing::ValuesIn(SupportedKernels()), KernelName);

}  // namespace
}  // namespace adamant::kernels
