// The registry: creating, finding, listing page by page, deleting.
#include "server/core/registry.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/late_backend.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;

Resources OnDevice(Resources resources, Backend* device) {
  resources.backend = device;
  return resources;
}

class RegistryTest : public ::testing::Test {
 protected:
  absl::StatusOr<v1::CreateParameterSetResponse> Create(const v1::ParameterSetSpec& spec,
                                                        v1::IfExists if_exists = v1::IF_EXISTS_FAIL) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = spec;
    request.set_if_exists(if_exists);
    return registry_.Create(request);
  }

  // The names of all sets that `request` asks for, a page after the other, and how many pages it took.
  std::pair<std::vector<std::string>, int> ListAll(v1::ListParameterSetsRequest request) {
    std::vector<std::string> names;
    for (int pages = 1;; ++pages) {
      const v1::ListParameterSetsResponse response = *ListParameterSets(registry_, request);
      for (const v1::ParameterSet& set : response.parameter_sets()) names.push_back(set.name());
      if (response.next_page_token().empty()) return {names, pages};
      request.set_page_token(response.next_page_token());
    }
  }

  absl::Status Delete(const std::string& name, std::optional<uint64_t> incarnation = {}) {
    v1::DeleteParameterSetRequest request;
    request.set_name(name);
    if (incarnation.has_value()) request.set_incarnation(*incarnation);
    absl::Status result;
    registry_.Delete(request, [&result](absl::Status status) { result = std::move(status); });
    return result;
  }

  TestServer server_;
  LateBackend other_device_{LateBackend::Slots::kApart};
  Registry registry_{{server_.resources(), OnDevice(server_.resources(), &other_device_)}};
};

TEST_F(RegistryTest, FindsWhatWasCreatedUntilItIsDeleted) {
  ASSERT_THAT(Create(SmallSpec("a/b")), IsOk());
  EXPECT_THAT(registry_.Find("a/b"), IsOk());
  ASSERT_THAT(Delete("a/b"), IsOk());
  const auto not_found = FailsWith(absl::StatusCode::kNotFound, v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_THAT(registry_.Find("a/b"), not_found);
  EXPECT_THAT(Delete("a/b"), not_found);
  EXPECT_THAT(Create(SmallSpec("a/b")), IsOk());
}

TEST_F(RegistryTest, ADeleteMaySayOfWhichIncarnation) {
  const uint64_t incarnation = Create(SmallSpec("a"))->parameter_set().incarnation();
  EXPECT_THAT(Delete("a", incarnation + 1),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_THAT(registry_.Find("a"), IsOk());
  EXPECT_THAT(Delete("a", incarnation), IsOk());
}

// As JavaScript has to: whole numbers from 2^53 on are not all there.
TEST_F(RegistryTest, IncarnationsOfNewSetsFitInADouble) {
  std::set<uint64_t> incarnations;
  for (int i = 0; i < 1000; ++i) {
    incarnations.insert(Create(SmallSpec("a"))->parameter_set().incarnation());
    ASSERT_THAT(Delete("a"), IsOk());
  }
  EXPECT_EQ(incarnations.size(), 1000u);
  EXPECT_GE(*incarnations.begin(), 1u);
  EXPECT_LT(*incarnations.rbegin(), uint64_t{1} << 53);
  EXPECT_GT(*incarnations.rbegin(), uint64_t{1} << 52);
}

TEST_F(RegistryTest, ASecondCreateFails) {
  ASSERT_THAT(Create(SmallSpec("a")), IsOk());
  EXPECT_THAT(Create(SmallSpec("a")), FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SET_EXISTS));
}

TEST_F(RegistryTest, ACreateThatCannotBeUnderstoodIsRefused) {
  EXPECT_THAT(Create(SmallSpec("a"), static_cast<v1::IfExists>(99)), RefusesField("if_exists"));
  EXPECT_THAT(Create(SmallSpec("Not a name")), RefusesField("spec.name"));
  EXPECT_THAT(Create(SmallSpec("a", v1::INITIALIZATION_UNSPECIFIED)), RefusesField("spec.initialization"));
  EXPECT_THAT(Create(SmallSpec("a", static_cast<v1::Initialization>(99))), RefusesField("spec.initialization"));
  v1::ParameterSetSpec spec = SmallSpec("a");
  spec.mutable_groups(0)->set_learning_rate(-1);
  EXPECT_THAT(Create(spec), RefusesField("spec.groups[0].learning_rate"));
  spec = SmallSpec("a");
  spec.clear_tensors();
  EXPECT_THAT(Create(spec), RefusesField("spec.tensors"));
  EXPECT_THAT(ListAll({}).first, IsEmpty());
}

TEST_F(RegistryTest, TheSameSpecificationMayBeUsedAgain) {
  ASSERT_TRUE(Create(SmallSpec("a"))->created());
  const auto again = Create(SmallSpec("a"), v1::IF_EXISTS_USE_IF_SAME_SPEC);
  ASSERT_THAT(again, IsOk());
  EXPECT_FALSE(again->created());

  v1::ParameterSetSpec with_defaults_spelt_out = SmallSpec("a");
  with_defaults_spelt_out.mutable_groups(0)->mutable_adam()->set_beta1(0.9);
  EXPECT_THAT(Create(with_defaults_spelt_out, v1::IF_EXISTS_USE_IF_SAME_SPEC), IsOk());
}

TEST_F(RegistryTest, AnotherSpecificationMayNotAndItsFirstDifferenceIsNamed) {
  ASSERT_THAT(Create(SmallSpec("a")), IsOk());
  const auto expect_difference = [this](const v1::ParameterSetSpec& spec, const std::string& message) {
    const absl::Status status = Create(spec, v1::IF_EXISTS_USE_IF_SAME_SPEC).status();
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH));
    EXPECT_EQ(status.message(), message + " (set `a`)");
    EXPECT_THAT(message, StartsWith(absl::StrCat("`", GetErrorDetail(status).field(), "`: ")));
  };
  v1::ParameterSetSpec other = SmallSpec("a");
  other.mutable_groups(0)->set_learning_rate(0.5);
  expect_difference(other, "`spec.groups[0].learning_rate`: expected 0.001, got 0.5");
  other = SmallSpec("a");
  other.mutable_groups(1)->mutable_adam()->set_beta1(0.8);
  other.mutable_groups(1)->mutable_adam()->set_eps(1e-7);
  expect_difference(other, "`spec.groups[1].adam.beta1`: expected 0.9, got 0.8");
  other = SmallSpec("a");
  other.mutable_groups(1)->mutable_adam()->set_beta2(0.99);
  expect_difference(other, "`spec.groups[1].adam.beta2`: expected 0.999, got 0.99");
  other = SmallSpec("a");
  other.mutable_groups(1)->mutable_adam()->set_eps(1e-7);
  expect_difference(other, "`spec.groups[1].adam.eps`: expected 1e-08, got 1e-07");
  other = SmallSpec("a");
  std::swap(*other.mutable_groups(0), *other.mutable_groups(1));
  expect_difference(other, "`spec.groups[0].name`: expected `slow`, got `fast`");
  other = SmallSpec("a");
  other.add_groups()->set_name("more");
  expect_difference(other, "`spec.groups`: expected 2, got 3");
  other = SmallSpec("a");
  other.mutable_tensors(1)->set_name("w3");
  expect_difference(other, "`spec.tensors[1].name`: expected `b1`, got `w3`");
  other = SmallSpec("a");
  other.mutable_tensors(2)->clear_shape();
  other.mutable_tensors(2)->add_shape(16);
  expect_difference(other, "`spec.tensors[2].shape`: expected [1, 16], got [16]");
  other = SmallSpec("a");
  other.mutable_tensors(0)->set_group("fast");
  expect_difference(other, "`spec.tensors[0].group`: expected `slow`, got `fast`");
  other = SmallSpec("a");
  other.mutable_tensors()->RemoveLast();
  expect_difference(other, "`spec.tensors`: expected 4, got 3");
  other = SmallSpec("a", v1::INITIALIZATION_WRITTEN);
  expect_difference(other, "`spec.initialization`: expected INITIALIZATION_ZEROS, got INITIALIZATION_WRITTEN");
}

TEST_F(RegistryTest, ASetLivesWhereItsSpecificationSays) {
  EXPECT_EQ(Create(SmallSpec("a"))->parameter_set().device(), "cpu");
  v1::ParameterSetSpec spec = SmallSpec("b");
  spec.set_device("cpu");
  EXPECT_EQ(Create(spec)->parameter_set().device(), "cpu");
  spec = SmallSpec("c");
  spec.set_device("late");
  EXPECT_EQ(Create(spec)->parameter_set().device(), "late");
  spec = SmallSpec("d");
  spec.set_device("cuda:7");
  const absl::Status status = Create(spec).status();
  EXPECT_THAT(status, RefusesField("spec.device"));
  EXPECT_THAT(status.message(), HasSubstr("expected none, or one of cpu, late, got `cuda:7`"));
}

TEST_F(RegistryTest, TheDefaultDeviceIsADeviceLikeOthersWhereSpecificationsAreCompared) {
  ASSERT_THAT(Create(SmallSpec("a")), IsOk());
  v1::ParameterSetSpec spec = SmallSpec("a");
  spec.set_device("cpu");
  EXPECT_THAT(Create(spec, v1::IF_EXISTS_USE_IF_SAME_SPEC), IsOk());
  spec.set_device("late");
  const absl::Status status = Create(spec, v1::IF_EXISTS_USE_IF_SAME_SPEC).status();
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH));
  EXPECT_EQ(status.message(), "`spec.device`: expected `cpu`, got `late` (set `a`)");
}

TEST_F(RegistryTest, NothingIsCreatedOnALostDevice) {
  other_device_.Lose();
  v1::ParameterSetSpec spec = SmallSpec("a");
  spec.set_device("late");
  EXPECT_THAT(Create(spec).status(), FailsWith(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DEVICE_LOST));
  EXPECT_EQ(server_.used().state, 0);
  EXPECT_THAT(Create(SmallSpec("a")), IsOk());
}

TEST_F(RegistryTest, ASpecificationThatNoSetCouldHaveIsToldWhatIsWrongWithIt) {
  ASSERT_THAT(Create(SmallSpec("a")), IsOk());
  v1::ParameterSetSpec other = SmallSpec("a");
  other.mutable_groups(0)->set_learning_rate(-1);
  EXPECT_THAT(Create(other, v1::IF_EXISTS_USE_IF_SAME_SPEC), RefusesField("spec.groups[0].learning_rate"));
  other = SmallSpec("a");
  other.clear_tensors();
  EXPECT_THAT(Create(other, v1::IF_EXISTS_USE_IF_SAME_SPEC), RefusesField("spec.tensors"));
  EXPECT_THAT(Create(SmallSpec("a", v1::INITIALIZATION_UNSPECIFIED), v1::IF_EXISTS_USE_IF_SAME_SPEC),
              RefusesField("spec.initialization"));
}

// Labels say what a set is for, and a float is what the kernel sees of a hyperparameter: a client that computes with
// floats and one that computes with doubles mean the same.
TEST_F(RegistryTest, LabelsAndWhatRoundsAwayMakeNoDifference) {
  ASSERT_THAT(Create(SmallSpec("a")), IsOk());
  v1::ParameterSetSpec other = SmallSpec("a");
  (*other.mutable_labels())["run"] = "7";
  other.mutable_groups(0)->set_learning_rate(static_cast<float>(1e-3));
  other.mutable_groups(0)->mutable_adam()->set_beta2(static_cast<float>(0.999));
  const auto again = Create(other, v1::IF_EXISTS_USE_IF_SAME_SPEC);
  ASSERT_THAT(again, IsOk());
  EXPECT_FALSE(again->created());
  EXPECT_TRUE(again->parameter_set().labels().empty());
}

TEST_F(RegistryTest, OfManyWorkersWhoCreateOneMakesTheSet) {
  std::vector<std::thread> workers;
  std::atomic<int> created = 0;
  std::atomic<int> found = 0;
  for (int i = 0; i < 8; ++i) {
    workers.emplace_back([&] {
      const auto response = Create(SmallSpec("a"), v1::IF_EXISTS_USE_IF_SAME_SPEC);
      (response->created() ? created : found)++;
    });
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(created, 1);
  EXPECT_EQ(found, 7);
}

TEST_F(RegistryTest, ListsInOrderOfNamePageByPage) {
  for (const char* name : {"b", "a", "d", "c", "e"}) ASSERT_THAT(Create(SmallSpec(name)), IsOk());
  v1::ListParameterSetsRequest request;
  request.set_page_size(2);
  const auto [names, pages] = ListAll(request);
  EXPECT_THAT(names, ElementsAre("a", "b", "c", "d", "e"));
  EXPECT_EQ(pages, 3);
}

TEST_F(RegistryTest, ListsByPrefixAndLabels) {
  v1::ParameterSetSpec labelled = SmallSpec("team/b");
  (*labelled.mutable_labels())["run"] = "7";
  ASSERT_THAT(Create(labelled), IsOk());
  for (const char* name : {"other", "team/a", "team/c", "team0"}) ASSERT_THAT(Create(SmallSpec(name)), IsOk());
  v1::ListParameterSetsRequest request;
  request.set_name_prefix("team/");
  EXPECT_THAT(ListAll(request).first, ElementsAre("team/a", "team/b", "team/c"));
  (*request.mutable_labels())["run"] = "7";
  EXPECT_THAT(ListAll(request).first, ElementsAre("team/b"));
  (*request.mutable_labels())["run"] = "8";
  EXPECT_THAT(ListAll(request).first, IsEmpty());
}

TEST_F(RegistryTest, FindsAFewAtATimeBehindAName) {
  for (const char* name : {"a", "b/1", "b/2", "b/3", "c"}) ASSERT_THAT(Create(SmallSpec(name)), IsOk());
  const auto find = [this](const char* after, const char* prefix, int most) {
    std::vector<std::string> names;
    for (const auto& set : registry_.FindBehind(after, prefix, most)) names.push_back(set->name());
    return names;
  };
  EXPECT_THAT(find("", "", 3), ElementsAre("a", "b/1", "b/2"));
  EXPECT_THAT(find("b/2", "", 3), ElementsAre("b/3", "c"));
  EXPECT_THAT(find("", "b/", 2), ElementsAre("b/1", "b/2"));
  EXPECT_THAT(find("a", "b/", 9), ElementsAre("b/1", "b/2", "b/3"));
  EXPECT_THAT(find("b/1", "b/", 9), ElementsAre("b/2", "b/3"));
  EXPECT_THAT(find("b/15", "b/", 9), ElementsAre("b/2", "b/3")) << "the name of a set that is no more";
  EXPECT_THAT(find("b/3", "b/", 9), IsEmpty());
  EXPECT_THAT(find("c", "b/", 9), IsEmpty());
}

// Whatever is asked for, a call compares or describes a thousand sets at most, and says where to go on.
TEST_F(RegistryTest, APageLooksAtAThousandSetsAndMayBeEmpty) {
  for (int i = 0; i < 2100; ++i) {
    v1::ParameterSetSpec spec = SmallSpec(absl::StrCat(10000 + i));
    if (i == 1500 || i == 2099) (*spec.mutable_labels())["run"] = "7";
    ASSERT_THAT(Create(spec), IsOk());
  }
  v1::ListParameterSetsRequest request;
  (*request.mutable_labels())["run"] = "7";
  v1::ListParameterSetsResponse page = *ListParameterSets(registry_, request);
  EXPECT_THAT(page.parameter_sets(), IsEmpty());
  EXPECT_EQ(page.next_page_token(), "10999");
  request.set_page_token(page.next_page_token());
  page = *ListParameterSets(registry_, request);
  ASSERT_THAT(page.parameter_sets(), SizeIs(1));
  EXPECT_EQ(page.parameter_sets(0).name(), "11500");
  EXPECT_EQ(page.next_page_token(), "11999");
  request.set_page_token(page.next_page_token());
  page = *ListParameterSets(registry_, request);
  ASSERT_THAT(page.parameter_sets(), SizeIs(1));
  EXPECT_EQ(page.parameter_sets(0).name(), "12099");
  EXPECT_EQ(page.next_page_token(), "");
  EXPECT_THAT(ListAll({}), Pair(SizeIs(2100), 3));
}

// Half of the sets have the label, a third come or go between the pages: those that stay are listed once, in order.
TEST_F(RegistryTest, SetsThatStayAreListedOnceHoweverManyComeAndGo) {
  const auto create = [this](const std::string& name, bool labelled) {
    v1::ParameterSetSpec spec = SmallSpec(name);
    if (labelled) (*spec.mutable_labels())["run"] = "7";
    ASSERT_THAT(Create(spec), IsOk());
  };
  std::vector<std::string> staying;
  for (int i = 0; i < 3000; ++i) {
    const std::string name = absl::StrCat(10000 + i);
    create(name, i % 2 == 0);
    if (i % 2 == 0 && i % 3 != 0) staying.push_back(name);
  }
  std::vector<std::string> listed;
  v1::ListParameterSetsRequest request;
  (*request.mutable_labels())["run"] = "7";
  int change = 0;
  do {
    const v1::ListParameterSetsResponse page = *ListParameterSets(registry_, request);
    for (const v1::ParameterSet& set : page.parameter_sets()) {
      const int number = std::stoi(set.name()) - 10000;
      if (set.name().size() == 5 && number % 3 != 0) listed.push_back(set.name());
    }
    request.set_page_token(page.next_page_token());
    // Before what was listed and behind it.
    for (; change < 3000 && change % 1200 != 1199; ++change) {
      const int i = change * 7 % 3000;
      if (i % 3 == 0) {
        ASSERT_THAT(Delete(absl::StrCat(10000 + i)), IsOk());
      } else if (i % 3 == 1) {
        create(absl::StrCat(10000 + i, "-new"), true);
      }
    }
    ++change;
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, staying);
}

TEST_F(RegistryTest, APageStaysWellUnderAMessage) {
  for (int i = 0; i < 200; ++i) {
    v1::ParameterSetSpec talkative = SmallSpec(absl::StrCat("set", i));
    for (int label = 0; label < 32; ++label) {
      (*talkative.mutable_labels())[absl::StrCat("label", label)] = std::string(255, 'x');
    }
    ASSERT_THAT(Create(talkative), IsOk());
  }
  EXPECT_LT(ListParameterSets(registry_, {})->ByteSizeLong(), size_t{2} << 20);
  EXPECT_THAT(ListAll({}).first, SizeIs(200));
}

TEST_F(RegistryTest, ListsTensorsPageByPage) {
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(SmallSpec("a"));
  v1::ListTensorsRequest request;
  request.set_page_size(3);
  v1::ListTensorsResponse response = *ListTensors(*set, request);
  ASSERT_THAT(response.tensors(), SizeIs(3));
  EXPECT_EQ(response.tensors(1).name(), "b1");
  EXPECT_EQ(response.tensors(1).group(), "fast");
  EXPECT_EQ(response.tensors(2).index(), 2);
  EXPECT_EQ(response.tensors(2).element_count(), 16);
  request.set_page_token(response.next_page_token());
  response = *ListTensors(*set, request);
  ASSERT_THAT(response.tensors(), SizeIs(1));
  EXPECT_EQ(response.tensors(0).name(), "b2");
  EXPECT_TRUE(response.next_page_token().empty());
}

TEST_F(RegistryTest, APageOfTensorsStaysWellUnderAMessage) {
  v1::ParameterSetSpec spec = SmallSpec("a");
  spec.clear_tensors();
  for (int i = 0; i < 6000; ++i) {
    std::string name = absl::StrCat(i);
    name.resize(kMaxTensorNameBytes, '-');
    spec.add_tensors()->set_name(name);
    spec.mutable_tensors(i)->add_shape(i % 2);
  }
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(spec);
  v1::ListTensorsRequest request;
  int next = 0;
  do {
    const v1::ListTensorsResponse response = *ListTensors(*set, request);
    ASSERT_LE(response.ByteSizeLong(), size_t{5} << 18);
    for (const v1::Tensor& tensor : response.tensors()) {
      ASSERT_EQ(tensor.index(), next);
      ASSERT_EQ(tensor.name(), spec.tensors(next).name());
      ASSERT_EQ(tensor.element_count(), next % 2);
      ++next;
    }
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(next, 6000);
}

TEST_F(RegistryTest, RefusesPagesThatItDidNotOffer) {
  const std::shared_ptr<ParameterSet> set = server_.MakeSet(SmallSpec("a"));
  v1::ListTensorsRequest tensors;
  for (const char* token : {"4", "-1", "x"}) {
    tensors.set_page_token(token);
    EXPECT_THAT(ListTensors(*set, tensors),
                FailsWith(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD));
  }
  tensors.clear_page_token();
  tensors.set_page_size(-1);
  EXPECT_THAT(ListTensors(*set, tensors), RefusesField("page_size"));
  v1::ListParameterSetsRequest sets;
  sets.set_page_token("Not a name");
  EXPECT_THAT(ListParameterSets(registry_, sets),
              FailsWith(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD));
  sets.clear_page_token();
  sets.set_page_size(1001);
  EXPECT_THAT(ListParameterSets(registry_, sets),
              FailsWith(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_INVALID_FIELD));
}

}  // namespace
}  // namespace adamant::core
