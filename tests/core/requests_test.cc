// What is remembered of requests, for how long, what is under way, and what makes two attempts the same request.
#include "server/core/set/requests.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/core/set_matchers.h"

namespace adamant::core {
namespace {

class RequestsTest : public ::testing::Test {
 protected:
  RequestsTest() { lifecycle_.Rewrite(/*incarnation=*/5, /*step=*/0); }

  void Remember(const std::vector<std::string>& request_ids, int64_t step) {
    std::vector<Requests::Key> keys;
    for (const std::string& request_id : request_ids) keys.push_back({request_id, /*header_hash=*/7});
    v1::StepResult result;
    result.set_step(step);
    requests_.Remember(Requests::Prepare(std::move(keys), result, nullptr));
  }

  absl::StatusOr<const v1::StepResult*> Find(absl::string_view request_id, uint64_t hash) const {
    v1::StepHeader header;
    header.set_request_id(std::string(request_id));
    return requests_.FindResult(header, hash);
  }

  Lifecycle lifecycle_{"set", /*fingerprint=*/1, /*incarnation=*/4};
  Requests requests_{&lifecycle_};
};

TEST_F(RequestsTest, FindsWhatWasRemembered) {
  Remember({"a"}, 1);
  Remember({"b"}, 2);
  const absl::StatusOr<const v1::StepResult*> found = Find("b", 7);
  ASSERT_THAT(found, IsOk());
  ASSERT_NE(*found, nullptr);
  EXPECT_EQ((*found)->step(), 2);
  EXPECT_EQ(requests_.FindResult("b"), *found);
  EXPECT_EQ(*Find("c", 7), nullptr);
  EXPECT_EQ(requests_.FindResult("c"), nullptr);
}

TEST_F(RequestsTest, AnotherHeaderIsRefused) {
  Remember({"a"}, 1);
  EXPECT_THAT(Find("a", 8), FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
}

TEST_F(RequestsTest, AStepIsFoundByEachOfTheRequestsThatMadeIt) {
  Remember({"a", "", "b"}, 1);
  EXPECT_EQ((*Find("a", 7))->step(), 1);
  EXPECT_EQ((*Find("b", 7))->step(), 1);
  EXPECT_EQ(*Find("", 7), nullptr);
}

TEST_F(RequestsTest, TheLast64StepsAreRemembered) {
  for (int64_t step = 1; step <= kRememberedSteps + 1; ++step) Remember({absl::StrCat("id", step)}, step);
  EXPECT_EQ(requests_.FindResult("id1"), nullptr);
  for (int64_t step = 2; step <= kRememberedSteps + 1; ++step) {
    ASSERT_NE(requests_.FindResult(absl::StrCat("id", step)), nullptr) << step;
  }
}

TEST_F(RequestsTest, AStepWithoutARequestIdTakesAPlaceAndIsNeverFound) {
  Remember({"a"}, 1);
  for (int64_t step = 2; step <= kRememberedSteps; ++step) Remember({""}, step);
  EXPECT_EQ(requests_.FindResult(""), nullptr);
  EXPECT_NE(requests_.FindResult("a"), nullptr);
  Remember({""}, kRememberedSteps + 1);
  EXPECT_EQ(requests_.FindResult("a"), nullptr);
}

v1::WriteHeader WriteHeader(absl::string_view request_id, v1::WriteMode mode) {
  v1::WriteHeader header;
  header.set_request_id(std::string(request_id));
  header.set_mode(mode);
  return header;
}

TEST_F(RequestsTest, AWriteIsRememberedInsteadOfAllSteps) {
  Remember({"a"}, 1);
  const v1::WriteHeader header = WriteHeader("write", v1::WRITE_MODE_PARAMETERS);
  EXPECT_FALSE(*requests_.IsApplied(header));
  requests_.Rewrite(header);
  EXPECT_EQ(requests_.FindResult("a"), nullptr);
  EXPECT_TRUE(*requests_.IsApplied(header));
  EXPECT_TRUE(requests_.MadeIncarnation("write"));
  EXPECT_THAT(requests_.IsApplied(WriteHeader("write", v1::WRITE_MODE_FULL)),
              FailsWith(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED));
  lifecycle_.BeginRewrite(/*full=*/true);
  EXPECT_FALSE(*requests_.IsApplied(header));
}

TEST_F(RequestsTest, AWriteWithoutARequestIdIsNeverFound) {
  requests_.Rewrite(WriteHeader("", v1::WRITE_MODE_PARAMETERS));
  EXPECT_FALSE(*requests_.IsApplied(WriteHeader("", v1::WRITE_MODE_PARAMETERS)));
}

v1::StepHeader Header() {
  v1::StepHeader header;
  header.set_set("models/a");
  header.set_incarnation(3);
  header.set_request_id("request");
  header.set_expected_step(0);
  return header;
}

TEST(HashHeaderTest, TheAttemptDoesNotCount) {
  v1::StepHeader second = Header();
  second.set_attempt(2);
  EXPECT_EQ(HashHeader(second), HashHeader(Header()));
}

TEST(HashHeaderTest, EveryOtherFieldCountsAndSoDoesItsPresence) {
  v1::StepHeader other = Header();
  other.set_set("models/b");
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.clear_incarnation();
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.set_schema_fingerprint(0);
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.set_request_id("other");
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
  other = Header();
  other.clear_expected_step();
  EXPECT_NE(HashHeader(other), HashHeader(Header()));
}

}  // namespace
}  // namespace adamant::core
