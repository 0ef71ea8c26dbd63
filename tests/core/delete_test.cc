// Deletes: they take a turn, end what has not arrived, and give memory back when nobody uses it any more.
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/fake_backends.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;

class DeleteTest : public ::testing::TestWithParam<v1::ParameterSetSpec> {
 protected:
  TestServer server_;
  std::shared_ptr<ParameterSet> set_ = server_.MakeSet(GetParam());
  const Values gradient_ = Gradient(set_->schema().parameter_count(), 1);
};

INSTANTIATE_TEST_SUITE_P(EverySize, DeleteTest, ::testing::Values(SmallSpec(), LargeSpec()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(DeleteTest, EverythingIsNotFoundAfterwards) {
  ASSERT_THAT(Delete(set_.get()), IsOk());
  EXPECT_TRUE(set_->deleted());
  const auto not_found = FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND);
  EXPECT_THAT(Step(set_.get(), Header(), gradient_), not_found);
  EXPECT_THAT(Read(set_.get(), ReadRequest()), not_found);
  EXPECT_THAT(BeginWrite(set_.get(), FullHeader(0)).Take(), not_found);
  EXPECT_THAT(StepResultOf(*set_, "a"), not_found);
  EXPECT_THAT(Delete(set_.get()), not_found);
}

TEST_P(DeleteTest, AnotherIncarnationIsAborted) {
  const uint64_t incarnation = set_->Describe().incarnation();
  EXPECT_THAT(Delete(set_.get(), incarnation + 1),
              FailsWith(absl::StatusCode::kAborted, v1::ERROR_REASON_INCARNATION_MISMATCH));
  EXPECT_FALSE(set_->deleted());
  EXPECT_THAT(Delete(set_.get(), incarnation), IsOk());
}

TEST_P(DeleteTest, StepsAndWritesThatHaveNotArrivedEnd) {
  StepDelivery step = BeginStep(set_.get(), Header("a", 0));
  WriteDelivery write = BeginWrite(set_.get(), ParametersHeader());
  ASSERT_THAT(Delete(set_.get()), IsOk());
  ASSERT_TRUE(step.done());
  ASSERT_TRUE(write.done());
  EXPECT_THAT(step.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  EXPECT_THAT(write.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

TEST_P(DeleteTest, BytesStayChargedUntilTheLastReferenceIsGone) {
  absl::StatusOr<std::unique_ptr<Reading>> reading = Read(set_.get(), FullReadRequest());
  absl::StatusOr<StepReply> reply = Step(set_.get(), Header(), gradient_);
  const Values parameters = Parameters(*reply);
  ASSERT_THAT(Delete(set_.get()), IsOk());
  server_.StopComputing();
  const int64_t state = server_.used().state;
  EXPECT_GE(state, 3 * ArrayBytes(*set_));
  set_.reset();
  EXPECT_EQ(server_.used().state, state);
  EXPECT_TRUE(SameBits(Fetch(**reading)->parameters, Values(gradient_.size())));
  reading = absl::CancelledError("over");
  EXPECT_EQ(server_.used().state, state);
  EXPECT_TRUE(SameBits(Parameters(*reply), parameters));
  reply = absl::CancelledError("over");
  EXPECT_EQ(server_.used(), (UsedBytes{0, 0, 0}));
}

TEST(DeleteTurnTest, StepsThatAreCompleteCommitBeforeTheDeleteAndThoseBehindItEnd) {
  GatedBackend backend;
  TestServer server({.backend = &backend});
  const std::shared_ptr<ParameterSet> set = server.MakeSet(Marked(LargeSpec()));
  const Values gradient = Gradient(set->schema().parameter_count(), 1);
  const std::vector<Piece> pieces = Cut(set->schema(), kBlockElements);
  StepDelivery before = BeginStep(set.get(), Header());
  StepDelivery behind = BeginStep(set.get(), Header());
  ASSERT_THAT(before.Send(pieces, gradient), IsOk());
  ASSERT_THAT(behind.Send(pieces, gradient), IsOk());
  ASSERT_THAT(before.Complete(), IsOk());
  backend.AwaitHeld();

  Gate deleted;
  bool name_is_free = false;
  set->Delete(
      {}, [&name_is_free] { name_is_free = true; }, [&deleted](absl::Status) { deleted.Open(); });
  ASSERT_THAT(behind.Complete(), IsOk());
  EXPECT_FALSE(set->deleted());
  backend.LetGo();
  deleted.Pass();
  EXPECT_TRUE(name_is_free);
  EXPECT_THAT(before.Take(), IsOk());
  EXPECT_THAT(behind.Take(), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
}

class RegistryTest : public ::testing::Test {
 protected:
  static v1::CreateParameterSetRequest CreateRequest(const v1::ParameterSetSpec& spec,
                                                     v1::IfExists if_exists = v1::IF_EXISTS_UNSPECIFIED) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = spec;
    request.set_if_exists(if_exists);
    return request;
  }

  absl::Status DeleteSet(const std::string& name) {
    v1::DeleteParameterSetRequest request;
    request.set_name(name);
    absl::Status result = absl::InternalError("`done` was not called");
    registry_.Delete(request, [&result](absl::Status status) { result = std::move(status); });
    return result;
  }

  std::vector<std::string> Names(const v1::ListParameterSetsResponse& response) {
    std::vector<std::string> names;
    for (const v1::ParameterSet& set : response.parameter_sets()) names.push_back(set.name());
    return names;
  }

  TestServer server_;
  Registry registry_{server_.resources()};
};

TEST_F(RegistryTest, ADeletedNameIsFree) {
  const uint64_t first = registry_.Create(CreateRequest(SmallSpec()))->parameter_set().incarnation();
  const std::shared_ptr<ParameterSet> old = *registry_.Find("small");
  ASSERT_THAT(DeleteSet("small"), IsOk());
  EXPECT_THAT(registry_.Find("small"), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  EXPECT_THAT(DeleteSet("small"), FailsWith(kNotFound, v1::ERROR_REASON_SET_NOT_FOUND));
  const absl::StatusOr<v1::CreateParameterSetResponse> second = registry_.Create(CreateRequest(SmallSpec()));
  ASSERT_THAT(second, IsOk());
  EXPECT_NE(second->parameter_set().incarnation(), first);
  // The old one is another set, and deleting it again does not touch the new one.
  EXPECT_FALSE(Delete(old.get()).ok());
  EXPECT_THAT(registry_.Find("small"), IsOk());
}

TEST_F(RegistryTest, CreateDoesAsIfExistsSays) {
  ASSERT_TRUE(registry_.Create(CreateRequest(SmallSpec()))->created());
  for (const v1::IfExists fail : {v1::IF_EXISTS_UNSPECIFIED, v1::IF_EXISTS_FAIL}) {
    EXPECT_THAT(registry_.Create(CreateRequest(SmallSpec(), fail)),
                FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SET_EXISTS));
  }
  const auto same = registry_.Create(CreateRequest(SmallSpec(), v1::IF_EXISTS_USE_IF_SAME_SPEC));
  ASSERT_THAT(same, IsOk());
  EXPECT_FALSE(same->created());
  EXPECT_THAT(registry_.Create(CreateRequest(SmallSpec(), static_cast<v1::IfExists>(9))), RefusesField("if_exists"));
}

TEST_F(RegistryTest, ASpecificationIsTheSameIfItIsWithAllDefaultsResolved) {
  ASSERT_TRUE(registry_.Create(CreateRequest(SmallSpec()))->created());
  v1::ParameterSetSpec resolved = SmallSpec();
  resolved.mutable_groups(0)->mutable_adam()->set_beta1(0.9);
  EXPECT_THAT(registry_.Create(CreateRequest(resolved, v1::IF_EXISTS_USE_IF_SAME_SPEC)), IsOk());

  std::vector<v1::ParameterSetSpec> others(6, SmallSpec());
  others[0].mutable_groups(0)->mutable_adam()->set_beta1(0.8);
  others[1].mutable_tensors(0)->set_group("fast");
  others[2].mutable_tensors(0)->set_name("w9");
  others[3].mutable_tensors(1)->add_shape(1);
  others[4].set_initialization(v1::INITIALIZATION_WRITTEN);
  (*others[5].mutable_labels())["run"] = "7";
  for (const v1::ParameterSetSpec& other : others) {
    EXPECT_THAT(registry_.Create(CreateRequest(other, v1::IF_EXISTS_USE_IF_SAME_SPEC)),
                FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_SPEC_MISMATCH))
        << other.ShortDebugString();
  }
}

TEST_F(RegistryTest, AnInvalidNameOrSpecificationIsRefused) {
  EXPECT_THAT(registry_.Create(CreateRequest(SmallSpec("Not/a name"))), RefusesField("spec.name"));
  EXPECT_THAT(registry_.Create(CreateRequest(SmallSpec("a", v1::INITIALIZATION_UNSPECIFIED))),
              RefusesField("spec.initialization"));
  EXPECT_THAT(registry_.Find(""), RefusesField("name"));
  EXPECT_EQ(server_.used().state, 0);
}

TEST_F(RegistryTest, SetsAreListedByNamePageByPage) {
  for (const char* name : {"b/2", "a", "b/1", "c"})
    ASSERT_THAT(registry_.Create(CreateRequest(SmallSpec(name))), IsOk());
  v1::ListParameterSetsRequest request;
  EXPECT_THAT(Names(*registry_.List(request)), ::testing::ElementsAre("a", "b/1", "b/2", "c"));
  request.set_page_size(3);
  absl::StatusOr<v1::ListParameterSetsResponse> page = registry_.List(request);
  EXPECT_THAT(Names(*page), ::testing::ElementsAre("a", "b/1", "b/2"));
  request.set_page_token(page->next_page_token());
  page = registry_.List(request);
  EXPECT_THAT(Names(*page), ::testing::ElementsAre("c"));
  EXPECT_EQ(page->next_page_token(), "");
}

TEST_F(RegistryTest, SetsAreFilteredByPrefixAndLabels) {
  for (const char* name : {"a", "b/1", "b/2", "c"}) {
    v1::ParameterSetSpec spec = SmallSpec(name);
    (*spec.mutable_labels())["owner"] = name[0] == 'b' ? "bob" : "eve";
    (*spec.mutable_labels())["name"] = name;
    ASSERT_THAT(registry_.Create(CreateRequest(spec)), IsOk());
  }
  v1::ListParameterSetsRequest request;
  request.set_name_prefix("b/");
  EXPECT_THAT(Names(*registry_.List(request)), ::testing::ElementsAre("b/1", "b/2"));
  (*request.mutable_labels())["name"] = "b/2";
  (*request.mutable_labels())["owner"] = "bob";
  EXPECT_THAT(Names(*registry_.List(request)), ::testing::ElementsAre("b/2"));
  request.clear_name_prefix();
  (*request.mutable_labels())["owner"] = "eve";
  EXPECT_THAT(Names(*registry_.List(request)), ::testing::IsEmpty());
}

TEST_F(RegistryTest, ListRefusesWhatItDidNotGive) {
  v1::ListParameterSetsRequest request;
  request.set_page_size(1001);
  EXPECT_THAT(registry_.List(request), RefusesField("page_size"));
  request.set_page_size(-1);
  EXPECT_THAT(registry_.List(request), RefusesField("page_size"));
  request.set_page_size(0);
  request.set_page_token("NOT A NAME");
  EXPECT_THAT(registry_.List(request), RefusesField("page_token"));
}

TEST_F(RegistryTest, TensorsAreListedByIndexPageByPage) {
  ASSERT_THAT(registry_.Create(CreateRequest(SmallSpec())), IsOk());
  const std::shared_ptr<ParameterSet> set = *registry_.Find("small");
  v1::ListTensorsRequest request;
  request.set_page_size(3);
  absl::StatusOr<v1::ListTensorsResponse> page = ListTensors(*set, request);
  ASSERT_EQ(page->tensors_size(), 3);
  EXPECT_EQ(page->tensors(0).name(), "w1");
  EXPECT_EQ(page->tensors(0).group(), "slow");
  EXPECT_EQ(page->tensors(0).element_count(), 32);
  EXPECT_THAT(page->tensors(0).shape(), ::testing::ElementsAre(16, 2));
  EXPECT_EQ(page->tensors(2).index(), 2);
  request.set_page_token(page->next_page_token());
  page = ListTensors(*set, request);
  ASSERT_EQ(page->tensors_size(), 1);
  EXPECT_EQ(page->tensors(0).name(), "b2");
  EXPECT_EQ(page->tensors(0).shape_size(), 0);
  EXPECT_EQ(page->next_page_token(), "");
  for (const char* token : {"4", "-1", "x"}) {
    request.set_page_token(token);
    EXPECT_THAT(ListTensors(*set, request), RefusesField("page_token"));
  }
}

}  // namespace
}  // namespace adamant::core
