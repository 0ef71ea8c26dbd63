// Defaults, and every limit of groups, labels and names.
#include "server/core/spec/configuration.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "kernels/dispatch.h"
#include "proto/error/error.h"
#include "tests/kernels/kernel_inputs.h"

namespace adamant::core {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void ExpectInvalid(const v1::ParameterSetSpec& spec, const std::string& field, const std::string& message) {
  const absl::Status status = Configuration::Create(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << spec.ShortDebugString();
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), field);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

// A set of one group that is all defaults but for what a test sets.
struct OneGroup {
  v1::ParameterSetSpec spec;
  v1::ParameterGroup* group = spec.add_groups();
  v1::Adam* adam = group->mutable_adam();
};

v1::ParameterGroup DefaultGroup() {
  v1::ParameterGroup group;
  group.set_name("default");
  group.set_learning_rate(1e-3);
  group.mutable_adam()->set_beta1(0.9);
  group.mutable_adam()->set_beta2(0.999);
  group.mutable_adam()->set_eps(1e-8);
  group.mutable_adam()->set_weight_decay(0);
  return group;
}

TEST(ConfigurationTest, WithoutGroupsThereIsOneOfAllDefaults) {
  const auto configuration = Configuration::Create(v1::ParameterSetSpec());
  ASSERT_TRUE(configuration.ok()) << configuration.status();
  ASSERT_EQ((*configuration)->groups().size(), 1u);
  EXPECT_TRUE(MessageDifferencer::Equals((*configuration)->groups()[0], DefaultGroup()));
  EXPECT_EQ((*configuration)->revision(), 1);
  EXPECT_TRUE((*configuration)->labels().empty());
}

TEST(ConfigurationTest, AnEmptyGroupIsTheDefaultOne) {
  v1::ParameterSetSpec spec;
  spec.add_groups();
  const auto configuration = Configuration::Create(spec);
  ASSERT_TRUE(configuration.ok()) << configuration.status();
  EXPECT_TRUE(MessageDifferencer::Equals((*configuration)->groups()[0], DefaultGroup()));
}

TEST(ConfigurationTest, WhatIsGivenIsKeptAndZeroIsGiven) {
  OneGroup set;
  set.group->set_name("all");
  set.group->set_learning_rate(0);
  set.adam->set_beta1(0);
  const auto configuration = Configuration::Create(set.spec);
  ASSERT_TRUE(configuration.ok()) << configuration.status();
  v1::ParameterGroup expected = DefaultGroup();
  expected.set_name("all");
  expected.set_learning_rate(0);
  expected.mutable_adam()->set_beta1(0);
  EXPECT_TRUE(MessageDifferencer::Equals((*configuration)->groups()[0], expected));
}

TEST(ConfigurationTest, NamesOfGroups) {
  const std::string longest(64, 'x');
  for (const std::string& name : {longest, std::string("A-z_0.9")}) {
    OneGroup set;
    set.group->set_name(name);
    EXPECT_TRUE(Configuration::Create(set.spec).ok()) << name;
  }
  for (const std::string& name : {longest + "x", std::string("a b"), std::string("a/b"), std::string("\xC3\xA9")}) {
    OneGroup set;
    set.group->set_name(name);
    ExpectInvalid(set.spec, "spec.groups[0].name", "1 to 64 characters of [A-Za-z0-9_.-]");
  }
}

TEST(ConfigurationTest, SeveralGroupsNeedNamesThatDiffer) {
  v1::ParameterSetSpec spec;
  spec.add_groups()->set_name("weights");
  spec.add_groups();
  ExpectInvalid(spec, "spec.groups[1].name", "1 to 64 characters");
  spec.mutable_groups(1)->set_name("weights");
  ExpectInvalid(spec, "spec.groups[1].name", "`weights`");
  spec.mutable_groups(1)->set_name("biases");
  EXPECT_TRUE(Configuration::Create(spec).ok());
}

TEST(ConfigurationTest, NumberOfGroups) {
  v1::ParameterSetSpec spec;
  for (int i = 0; i < kMaxGroups; ++i) spec.add_groups()->set_name(absl::StrCat("g", i));
  EXPECT_TRUE(Configuration::Create(spec).ok());
  spec.add_groups()->set_name("one more");
  ExpectInvalid(spec, "spec.groups", "expected at most 1024 groups, got 1025");
}

// A value's limits, and the values just outside of them; all as floats.
struct RangeCase {
  const char* field;
  void (*set)(OneGroup*, double);
  double lowest;
  double highest;
};

class RangeTest : public ::testing::TestWithParam<RangeCase> {
 protected:
  static absl::Status Create(double value) {
    OneGroup set;
    GetParam().set(&set, value);
    return Configuration::Create(set.spec).status();
  }
};

TEST_P(RangeTest, BothLimitsAreValid) {
  EXPECT_TRUE(Create(GetParam().lowest).ok());
  EXPECT_TRUE(Create(GetParam().highest).ok());
}

TEST_P(RangeTest, WhatIsOutsideIsRefusedNamingTheFieldAndTheValue) {
  const float below = std::nextafterf(static_cast<float>(GetParam().lowest), -1.0f);
  const float above = std::nextafterf(static_cast<float>(GetParam().highest), HUGE_VALF);
  for (const double value : {static_cast<double>(below), static_cast<double>(above), -1.0, 1e300, kInfinity, kNaN}) {
    const absl::Status status = Create(value);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << value;
    EXPECT_EQ(GetErrorDetail(status).field(), GetParam().field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("got ", Spelled(value))));
  }
}

TEST_P(RangeTest, WhatRoundsToALimitIsValid) { EXPECT_TRUE(Create(GetParam().highest * (1 + 0x1p-40)).ok()); }

INSTANTIATE_TEST_SUITE_P(
    EveryHyperparameter, RangeTest,
    ::testing::Values(RangeCase{"spec.groups[0].learning_rate",
                                [](OneGroup* set, double value) {
                                  set->group->set_learning_rate(value);
                                  set->adam->set_eps(1);
                                },
                                0, 0x1p32},
                      RangeCase{"spec.groups[0].adam.beta1",
                                [](OneGroup* set, double value) { set->adam->set_beta1(value); }, 0, 1 - 0x1p-20},
                      RangeCase{"spec.groups[0].adam.beta2",
                                [](OneGroup* set, double value) { set->adam->set_beta2(value); }, 0, 1 - 0x1p-20},
                      RangeCase{"spec.groups[0].adam.eps",
                                [](OneGroup* set, double value) { set->adam->set_eps(value); }, 1e-16, 0x1p32}),
    [](const auto& test) {
      const std::string field = test.param.field;
      return field.substr(field.rfind('.') + 1);
    });

TEST(ConfigurationTest, TheSmallestEpsRisesWithBeta2) {
  OneGroup set;
  set.adam->set_beta2(1 - 0x1p-20);
  set.adam->set_eps(kernels::MinEps(1 - 0x1p-20));
  EXPECT_TRUE(Configuration::Create(set.spec).ok());
  set.adam->set_eps(kernels::MinEps(1 - 0x1p-20) * 0.999);
  ExpectInvalid(set.spec, "spec.groups[0].adam.eps", "got 1.5");
}

// With whole powers of two, the bounds are floats.
TEST(ConfigurationTest, TheLargestLearningRateFallsWithEps) {
  OneGroup set;
  set.adam->set_beta1(0.5);
  set.adam->set_beta2(0.25);
  set.adam->set_eps(0x1p-53);
  set.group->set_learning_rate(16);
  EXPECT_TRUE(Configuration::Create(set.spec).ok());
  set.group->set_learning_rate(std::nextafterf(16, 17));
  ExpectInvalid(set.spec, "spec.groups[0].learning_rate", "expected at most 2^58 * (1 - beta1) * eps, 16, where");

  set.adam->set_beta2(0.249);
  set.group->set_learning_rate(0x1p-16);
  EXPECT_TRUE(Configuration::Create(set.spec).ok());
  set.group->set_learning_rate(std::nextafterf(0x1p-16f, 1));
  ExpectInvalid(set.spec, "spec.groups[0].learning_rate",
                "expected at most 2^38 * (1 - beta1) * eps, 1.52587890625e-05");
}

TEST(ConfigurationTest, LearningRatesThatPeopleUseAreFarFromTheBound) {
  const struct {
    double learning_rate, beta1, beta2, eps;
  } used[] = {{10, 0.9, 0.999, 1e-8},   {1e-3, 0.9, 0.999, 1e-16}, {0.05, 0.9, 0.999, 1e-15}, {1, 0, 0.999, 1e-16},
              {0.1, 0.95, 0.95, 1e-10}, {0.1, 0.95, 0.9, 1e-8},    {10, 0.9, 0, 1e-8},        {1e-3, 0.99, 0.9, 1e-10}};
  for (const auto& [learning_rate, beta1, beta2, eps] : used) {
    OneGroup set;
    set.group->set_learning_rate(4 * learning_rate);
    set.adam->set_beta1(beta1);
    set.adam->set_beta2(beta2);
    set.adam->set_eps(eps);
    EXPECT_TRUE(Configuration::Create(set.spec).ok()) << set.spec.ShortDebugString();
  }
}

// Hyperparameters at the edges of what is permitted: betas, eps, and the largest learning rate that goes with them.
class ExtremesTest : public ::testing::Test {
 protected:
  static constexpr double kBetas[] = {0, 0.25, 0.5, 0.9, 0.999, 1 - 0x1p-20};
  static constexpr int kElements = 64;
  static constexpr int kSteps = 2000;

  // Null where eps is too small for beta2.
  static std::shared_ptr<const Configuration> Make(double learning_rate, double beta1, double beta2, double eps) {
    OneGroup set;
    set.group->set_learning_rate(learning_rate);
    set.adam->set_beta1(beta1);
    set.adam->set_beta2(beta2);
    set.adam->set_eps(eps);
    const auto configuration = Configuration::Create(set.spec);
    return configuration.ok() ? *configuration : nullptr;
  }

  // With the largest learning rate that is permitted.
  static std::shared_ptr<const Configuration> MakeLargest(double beta1, double beta2, double eps) {
    std::shared_ptr<const Configuration> largest = Make(0, beta1, beta2, eps);
    // Floats that are not negative are in the order of their bits.
    for (uint32_t bits = 0, bit = uint32_t{1} << 30; largest != nullptr && bit != 0; bit /= 2) {
      const auto larger = Make(std::bit_cast<float>(bits + bit), beta1, beta2, eps);
      if (larger == nullptr) continue;
      largest = larger;
      bits += bit;
    }
    return largest;
  }

  // State as a write may bring it, and gradients of up to just below 2^63, each element in its own rhythm, all of them
  // away from zero.
  void ExpectFiniteParameters(const Configuration& configuration, int64_t step) {
    std::vector<float> p(kElements), m(kElements), v(kElements), g(kElements);
    std::vector<int64_t> period(kElements);
    constexpr float kVs[] = {0, 0x1p-126f, 1, 0x1p127f};
    for (int i = 0; i < kElements; ++i) {
      p[i] = random_.Index(2) == 0 ? 0x1p95f : -0x1p95f;
      m[i] = -std::copysign(0x1p64f, p[i]);
      v[i] = i < kElements / 2 ? 0 : kVs[random_.Index(4)];
      period[i] = i % 4 == 0 ? kSteps + 1 : 1 + random_.Index(8);  // a quarter gets no gradient
    }
    for (int n = 1; n <= kSteps; ++n) {
      for (int i = 0; i < kElements; ++i) {
        g[i] = n % period[i] == 0 ? -std::copysign(0x1.fffffep62f, p[i]) : 0;
      }
      const kernels::UpdateSpan span = {
          kElements, g.data(), p.data(), p.data(), {{m.data(), m.data()}, {v.data(), v.data()}}};
      kernels::FindKernels("scalar")->update[kernels::kAdam](
          MakeRecipe(configuration.groups()[0], configuration.groups()[0].learning_rate(), step + n - 1, {}).scalars,
          span);
    }
    for (int i = 0; i < kElements; ++i) {
      ASSERT_TRUE(std::isfinite(p[i])) << configuration.groups()[0].ShortDebugString() << " period " << period[i];
    }
  }

  kernels::RandomFloats random_{kernels::PrintedSeed()};
};

TEST_F(ExtremesTest, NoParameterBecomesInfinite) {
  for (const double beta1 : kBetas) {
    for (const double beta2 : kBetas) {
      for (const double eps : {kernels::MinEps(beta2), 1e-8, 1.0, 0x1p32}) {
        const std::shared_ptr<const Configuration> configuration = MakeLargest(beta1, beta2, eps);
        ASSERT_NE(configuration, nullptr);
        for (const int64_t step : {int64_t{0}, int64_t{1} << 20}) ExpectFiniteParameters(*configuration, step);
      }
    }
  }
}

TEST(ConfigurationTest, LabelsAreKept) {
  v1::ParameterSetSpec spec;
  (*spec.mutable_labels())["team"] = "vision \xC3\xA9";
  (*spec.mutable_labels())[std::string(63, 'k')] = std::string(255, 'v');
  (*spec.mutable_labels())["empty"] = "";
  const auto configuration = Configuration::Create(spec);
  ASSERT_TRUE(configuration.ok()) << configuration.status();
  EXPECT_EQ((*configuration)->labels().size(), 3u);
  EXPECT_EQ((*configuration)->labels().at("team"), "vision \xC3\xA9");
}

TEST(ConfigurationTest, LimitsOfLabels) {
  const std::pair<std::string, std::string> invalid[] = {
      {"", ""}, {std::string(64, 'k'), ""}, {"\xFF", ""}, {"key", std::string(256, 'v')}, {"key", "\xC3"}};
  for (const auto& [key, value] : invalid) {
    v1::ParameterSetSpec spec;
    (*spec.mutable_labels())[key] = value;
    ExpectInvalid(spec, "spec.labels", "bytes of UTF-8");
  }
  v1::ParameterSetSpec spec;
  for (int i = 0; i < kMaxLabels; ++i) (*spec.mutable_labels())[absl::StrCat(i)] = "";
  EXPECT_TRUE(Configuration::Create(spec).ok());
  (*spec.mutable_labels())["one more"] = "";
  ExpectInvalid(spec, "spec.labels", "at most 32 labels, got 33");
}

TEST(ConfigurationTest, ScalarsAreThoseOfTheGroupAndTheStep) {
  v1::ParameterSetSpec spec;
  spec.add_groups()->set_name("a");
  v1::ParameterGroup* b = spec.add_groups();
  b->set_name("b");
  b->set_learning_rate(0.25);
  b->mutable_adam()->set_beta1(0.5);
  b->mutable_adam()->set_beta2(0.75);
  b->mutable_adam()->set_eps(0.125);
  const auto configuration = *Configuration::Create(spec);
  EXPECT_EQ(LearningRateAt(configuration->groups()[0], 0), 1e-3);
  EXPECT_EQ(LearningRateAt(configuration->groups()[1], 0), 0.25);
  const auto [update, scalars] = MakeRecipe(configuration->groups()[1], 0.25, /*update_count=*/1, {.scale = 0.5f});
  EXPECT_EQ(update, kernels::kAdam);
  EXPECT_EQ(scalars.beta1, 0.5f);
  EXPECT_EQ(scalars.omb1, 0.5f);
  EXPECT_EQ(scalars.beta2, 0.75f);
  EXPECT_EQ(scalars.omb2, 0.25f);
  EXPECT_EQ(scalars.eps, 0.125f);
  EXPECT_EQ(scalars.scale, 0.5f);
  EXPECT_EQ(scalars.step_size, static_cast<float>(0.25 / 0.75)) << "1 - 0.5^2 = 0.75";
}

TEST(SetNameTest, NamesAsPeopleHaveThem) {
  for (const std::string& name :
       {std::string("m"), std::string("0"), std::string("A"), std::string("models/resnet-50/v1.2_b"),
        std::string("Qwen/Qwen2.5-0.5B"), std::string("run_2026-11-22T10:30:00"), std::string("exp/seed=3"),
        std::string("bge-m3:latest"), std::string("_tmp"), std::string("-a/+b/=c/:d/@e/~f"), std::string("a-/b./c_"),
        std::string(".hidden/..a/a../..."), std::string(255, 'n')}) {
    EXPECT_TRUE(ValidateSetName(name, "name").ok()) << name;
  }
}

TEST(SetNameTest, AnythingElseIsRefusedSayingWhatAndWhere) {
  const std::pair<std::string, std::string> invalid[] = {
      {"", "got an empty name"},
      {"/", "got an empty segment at position 0 of `/`"},
      {"/a", "got an empty segment at position 0 of `/a`"},
      {"a/", "got an empty segment at position 2 of `a/`"},
      {"a//b", "got an empty segment at position 2 of `a//b`"},
      {".", "got the segment `.` at position 0 of `.`"},
      {"a/../b", "got the segment `..` at position 2 of `a/../b`"},
      {"my set", "got ` ` at position 2 of `my set`"},
      {"run/my set", "got ` ` at position 6 of `run/my set`"},
      {"a\\b", "got `\\\\` at position 1 of `a\\\\b`"},
      {"x*", "got `*` at position 1 of `x*`"},
      {std::string("a\0b", 3), "got `\\x00` at position 1"},
      {"mod\xC3\xA8le", "got `\xC3\xA8` at position 3 of `mod\xC3\xA8le`"},
      {std::string(256, 'n'), "expected at most 255 bytes, got `nnnn"},
      {"#" + std::string(200, 'n'), "got `#` at position 0 of `#nnn"}};
  for (const auto& [name, message] : invalid) {
    const absl::Status status = ValidateSetName(name, "spec.name");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
    EXPECT_EQ(GetErrorDetail(status).field(), "spec.name");
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_LT(status.message().size(), 300u) << "long names are cut";
  }
  EXPECT_EQ(ValidateSetName("my set", "name").message(),
            "`name`: expected letters, digits and . _ - + = : @ ~ in segments joined by /, none of them `.` or `..`, "
            "got ` ` at position 2 of `my set`");
}

}  // namespace
}  // namespace adamant::core
