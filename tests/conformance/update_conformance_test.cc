// Every instruction set's updates give the scalar reference's bits, whatever the input, and touch nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/scalars.h"
#include "kernels/update.h"
#include "tests/conformance/kernel_conformance.h"
#include "tests/kernels/kernel_inputs.h"
#include "tests/kernels/update_inputs.h"

namespace adamant::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct State {
  std::vector<float> g, p, slots[kMaxSlots];  // as many slots as the update has, the others empty

  int64_t size() const { return static_cast<int64_t>(p.size()); }
};

testing::AssertionResult SameState(const State& expected, const State& actual) {
  if (auto same = SameFloats(expected.p, actual.p); !same) return same << " in p";
  for (int k = 0; k < kMaxSlots; ++k) {
    if (auto same = SameFloats(expected.slots[k], actual.slots[k]); !same) return same << " in slot " << k;
  }
  return testing::AssertionSuccess();
}

// A kernel that touches a slot that it does not have ends here.
UpdateSpan InPlace(State* state) {
  UpdateSpan span = {
      .size = state->size(), .g = state->g.data(), .p_in = state->p.data(), .p_out = state->p.data(), .slots = {}};
  for (int k = 0; k < kMaxSlots; ++k) {
    if (!state->slots[k].empty()) span.slots[k] = {state->slots[k].data(), state->slots[k].data()};
  }
  return span;
}

bool IsDenormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL; }

testing::AssertionResult NoDenormalSlot(const State& state) {
  for (int k = 0; k < kMaxSlots; ++k) {
    const auto denormal = std::find_if(state.slots[k].begin(), state.slots[k].end(), IsDenormal);
    if (denormal != state.slots[k].end()) {
      return testing::AssertionFailure() << *denormal << " in slot " << k << " at "
                                         << denormal - state.slots[k].begin();
    }
  }
  return testing::AssertionSuccess();
}

using Parameter = std::tuple<const KernelTable*, int>;

class UpdateConformanceTest : public testing::TestWithParam<Parameter> {
 protected:
  Update update() const { return static_cast<Update>(std::get<1>(GetParam())); }
  int slots() const { return kSlotCounts[update()]; }
  void Run(const UpdateScalars& scalars, const UpdateSpan& span) {
    std::get<0>(GetParam())->update[update()](scalars, span);
  }
  State Actual(const UpdateScalars& scalars, State state) {
    Run(scalars, InPlace(&state));
    return state;
  }
  State Expected(const UpdateScalars& scalars, State state) const {
    ScalarKernels().update[update()](scalars, InPlace(&state));
    return state;
  }

  State AnyState(int64_t size) {
    const auto any = [&] { return random_.Any(); };
    State state = {.g = Generate(size, any), .p = Generate(size, any), .slots = {}};
    for (int k = 0; k < slots(); ++k) state.slots[k] = Generate(size, any);
    return state;
  }
  // As training makes it: finite, v not negative.
  State OrdinaryState(int64_t size) {
    State state = {.g = Generate(size, [&] { return random_.Signed(1e-8, 1e2); }),
                   .p = Generate(size, [&] { return random_.Signed(1e-4, 1); }),
                   .slots = {}};
    for (int k = 0; k < slots(); ++k) {
      state.slots[k] =
          Generate(size, [&] { return k == 0 ? random_.Signed(1e-8, 1e2) : std::fabs(random_.Signed(1e-16, 1e4)); });
    }
    return state;
  }

  UpdateScalars AnyScalars() { return kernels::AnyScalars(update(), &random_); }
  // What a user would choose, with every term in play.
  UpdateScalars OrdinaryScalars(int64_t t, float clip = 1e3f) const {
    const GradientTransform transform = {.scale = -0.75f, .clip = clip};
    return IsAdam(update())
               ? MakeAdamScalars(
                     {.learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 1e-2}, t,
                     transform)
               : MakeSgdScalars({.learning_rate = 1e-3, .momentum = 0.9, .dampening = 0.25, .weight_decay = 1e-2}, t,
                                transform);
  }
  // The state decays fast, nothing else happens to it.
  UpdateScalars ForgetfulScalars(int64_t t, float scale) const {
    return IsAdam(update())
               ? MakeAdamScalars({.learning_rate = 1e-3, .beta1 = 0.5, .beta2 = 0.5, .eps = 1e-8}, t, {.scale = scale})
               : MakeSgdScalars({.learning_rate = 1e-3, .momentum = 0.5}, t, {.scale = scale});
  }

  RandomFloats random_{PrintedSeed()};
};

TEST_P(UpdateConformanceTest, EverySizeGivesTheReferencesBits) {
  std::vector<int64_t> sizes(301);
  std::iota(sizes.begin(), sizes.end(), 0);
  sizes.insert(sizes.end(), {4095, 4097, 20001});
  for (int64_t size : sizes) {
    const UpdateScalars scalars = AnyScalars();
    const State state = AnyState(size);

    ASSERT_TRUE(SameState(Expected(scalars, state), Actual(scalars, state))) << "size " << size;
  }
}

TEST_P(UpdateConformanceTest, EveryValidHyperparameterGivesTheReferencesBits) {
  for (int i = 0; i < 500; ++i) {
    const UpdateScalars scalars = AnyScalars();
    State state = i % 2 == 0 ? AnyState(100) : OrdinaryState(100);
    // Each threshold and its neighbours, on both sides of zero.
    int64_t element = 0;
    const auto put = [&](std::vector<float>* array, float threshold, std::optional<float> others_g) {
      for (float x : {threshold, std::nextafter(threshold, 0.0f), std::nextafter(threshold, kInfinity)}) {
        for (float sign : {1.0f, -1.0f}) {
          if (others_g) state.g[element] = *others_g;
          (*array)[element++] = sign * x;
        }
      }
    };
    put(&state.g, scalars.g_lo, std::nullopt);
    put(&state.g, scalars.clip / std::fabs(scalars.scale), std::nullopt);
    put(&state.p, scalars.g_min / scalars.weight_decay, 0.0f);
    put(&state.p, 0x1p63f / scalars.weight_decay, 0.0f);
    put(&state.p, 0x1p-100f, std::nullopt);
    // Signs of zeros: no gradient, no state.
    for (float zero : {0.0f, -0.0f}) {
      for (std::vector<float>& slot : state.slots) {
        if (!slot.empty()) slot[element] = -zero;
      }
      state.g[element] = -1e-45f;
      state.p[element++] = zero;
    }

    ASSERT_TRUE(SameState(Expected(scalars, state), Actual(scalars, state))) << "iteration " << i;
  }
}

TEST_P(UpdateConformanceTest, ATrainingRunGivesTheReferencesBits) {
  State actual = OrdinaryState(301);
  State expected = actual;
  for (int64_t t = 1; t <= 100; ++t) {
    const UpdateScalars scalars = OrdinaryScalars(t, t % 2 == 0 ? 1e3f : kInfinity);
    expected.g = Generate(actual.size(), [&] { return random_.Index(4) == 0 ? 0.0f : random_.Signed(1e-20, 1e6); });
    actual.g = expected.g;
    expected = Expected(scalars, expected);

    actual = Actual(scalars, actual);

    ASSERT_TRUE(SameState(expected, actual)) << "step " << t;
  }
}

TEST_P(UpdateConformanceTest, EveryAliasingAndAlignmentGivesTheReferencesBitsAndWritesNothingElse) {
  enum class NewParameters { kApart, kOverGradient, kOverOld };
  for (NewParameters destination : {NewParameters::kApart, NewParameters::kOverGradient, NewParameters::kOverOld}) {
    for (int64_t size : {0, 1, 7, 8, 9, 15, 16, 17, 33, 250}) {
      for (int64_t offset = 0; offset < 16; ++offset) {
        const UpdateScalars scalars = AnyScalars();
        const State state = AnyState(size);
        const std::vector<float> untouched(size, 42.0f);
        // `p` lies at `offset`, the others anywhere; each slot in place or not.
        const auto anywhere = [&](const std::vector<float>& values) {
          return CanariedArray(values, random_.Index(16));
        };
        CanariedArray p(state.p, offset), g = anywhere(state.g), new_p = anywhere(untouched);
        std::vector<CanariedArray> old_slots, new_slots;
        for (int k = 0; k < slots(); ++k) {
          old_slots.push_back(anywhere(state.slots[k]));
          new_slots.push_back(anywhere(untouched));
        }
        CanariedArray& p_out = destination == NewParameters::kApart          ? new_p
                               : destination == NewParameters::kOverGradient ? g
                                                                             : p;
        UpdateSpan span = {.size = size, .g = g.data(), .p_in = p.data(), .p_out = p_out.data(), .slots = {}};
        std::vector<CanariedArray*> slots_out;
        for (int k = 0; k < slots(); ++k) {
          slots_out.push_back(random_.Index(2) == 0 ? &old_slots[k] : &new_slots[k]);
          span.slots[k] = {old_slots[k].data(), slots_out[k]->data()};
        }

        Run(scalars, span);

        SCOPED_TRACE(testing::Message() << "size " << size << " offset " << offset);
        const State expected = Expected(scalars, state);
        ASSERT_TRUE(SameFloats(expected.p, p_out.values()));
        ASSERT_TRUE(p.NothingOutsideWasWritten() && g.NothingOutsideWasWritten() && new_p.NothingOutsideWasWritten());
        EXPECT_TRUE(&p == &p_out || SameFloats(state.p, p.values())) << "p_in";
        EXPECT_TRUE(&g == &p_out || SameFloats(state.g, g.values())) << "g";
        for (int k = 0; k < slots(); ++k) {
          ASSERT_TRUE(SameFloats(expected.slots[k], slots_out[k]->values())) << "slot " << k;
          ASSERT_TRUE(old_slots[k].NothingOutsideWasWritten() && new_slots[k].NothingOutsideWasWritten()) << k;
          EXPECT_TRUE(&old_slots[k] == slots_out[k] || SameFloats(state.slots[k], old_slots[k].values())) << k;
        }
      }
    }
  }
}

TEST_P(UpdateConformanceTest, TouchesNoMemoryOutsideOfTheSpan) {
  for (FencedArray::At at : {FencedArray::At::kBegin, FencedArray::At::kEnd}) {
    for (int64_t size = 0; size <= 70; ++size) {
      const UpdateScalars scalars = AnyScalars();
      const State state = AnyState(size);
      FencedArray p(state.p, at), g(state.g, at);
      FencedArray fenced[kMaxSlots] = {{state.slots[0], at}, {state.slots[1], at}, {state.slots[2], at}};
      UpdateSpan span = {.size = size, .g = g.data(), .p_in = p.data(), .p_out = g.data(), .slots = {}};
      for (int k = 0; k < slots(); ++k) span.slots[k] = {fenced[k].data(), fenced[k].data()};

      Run(scalars, span);

      const State actual = {
          .g = {}, .p = g.values(), .slots = {fenced[0].values(), fenced[1].values(), fenced[2].values()}};
      ASSERT_TRUE(SameState(Expected(scalars, state), actual)) << "size " << size;
    }
  }
}

TEST_P(UpdateConformanceTest, StateOfADeadUnitReachesZeroAndIsNeverDenormal) {
  State state = OrdinaryState(37);
  std::fill(state.g.begin(), state.g.end(), 0.0f);
  // 0.5^150 * 1e4 < 2^-126.
  for (int64_t t = 1; t <= 150; ++t) {
    // The largest v so far does not decay.
    if (HasAmsgrad(update())) std::fill(state.slots[2].begin(), state.slots[2].end(), 0.0f);

    Run(ForgetfulScalars(t + 1, 1), InPlace(&state));

    ASSERT_TRUE(NoDenormalSlot(state)) << "step " << t;
  }

  const State zero = {.g = state.g,
                      .p = state.p,
                      .slots = {std::vector<float>(state.slots[0].size()), std::vector<float>(state.slots[1].size()),
                                std::vector<float>(state.slots[2].size())}};
  EXPECT_TRUE(SameState(zero, state));
  EXPECT_TRUE(SameState(zero, Actual(ForgetfulScalars(152, 1), zero)));
}

TEST_P(UpdateConformanceTest, TinyGradientsNeverMakeADenormalState) {
  for (float scale : {1.0f, 0x1p-40f, -0x1p40f}) {
    State state;
    // From the smallest denormal to 1e-12, of both signs.
    for (int power = 0; power <= 142; ++power) {
      const float g = static_cast<float>(0x1p-149 * std::pow(1.7, power));
      state.g.insert(state.g.end(), {g, -g});
    }
    state.p.assign(state.g.size(), 1);
    for (int k = 0; k < slots(); ++k) state.slots[k].assign(state.g.size(), 0);
    for (int64_t t = 1; t <= 20; ++t) {
      Run(OrdinaryScalars(t, kInfinity), InPlace(&state));
      ASSERT_TRUE(NoDenormalSlot(state)) << "scale " << scale << " step " << t;
      Run(ForgetfulScalars(t, scale), InPlace(&state));
      ASSERT_TRUE(NoDenormalSlot(state)) << "scale " << scale << " step " << t;
    }
  }
}

TEST_P(UpdateConformanceTest, NoValidHyperparameterMakesADenormalState) {
  for (int i = 0; i < 150; ++i) {
    State state = AnyState(100);
    // The largest v so far is as it was, if no v exceeds it.
    for (float& v_max : state.slots[2]) v_max = IsDenormal(v_max) ? 0 : v_max;

    Run(AnyScalars(), InPlace(&state));

    ASSERT_TRUE(NoDenormalSlot(state)) << "iteration " << i;
  }
}

#if defined(__x86_64__)
TEST_P(UpdateConformanceTest, CallersFloatingPointEnvironmentNeitherChangesTheResultNorIsChanged) {
  const UpdateScalars scalars = OrdinaryScalars(3);
  State state = AnyState(203);
  for (std::vector<float>& slot : state.slots) {
    for (size_t i = 0; i < slot.size(); i += 2) slot[i] = std::fabs(random_.Signed(0x1p-126, 0x1p-100));
  }
  const State expected = Expected(scalars, state);
  for (unsigned int environment : FloatingPointEnvironments()) {
    State actual = state;
    const UpdateSpan span = InPlace(&actual);

    const unsigned int after = CallIn(environment, [&] { Run(scalars, span); });

    ASSERT_EQ(after, environment);
    ASSERT_TRUE(SameState(expected, actual)) << "MXCSR " << environment;
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryIsa, UpdateConformanceTest,
                         testing::Combine(testing::ValuesIn(SupportedKernels()), testing::Range<int>(0, kUpdates)),
                         [](const testing::TestParamInfo<Parameter>& info) {
                           return std::get<0>(info.param)->name + std::string(kUpdateNames[std::get<1>(info.param)]);
                         });

}  // namespace
}  // namespace adamant::kernels
