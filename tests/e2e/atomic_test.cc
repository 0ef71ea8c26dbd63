// A step that breaks off changes nothing, wherever it is cut and however; and then it can be sent again.
#include <google/protobuf/util/delimited_message_util.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

// A way to break off: sends `messages`, which are not all of a step, and returns the code that its call ended with.
struct Cut {
  std::string name;
  absl::StatusCode code;
  std::function<absl::Status(const std::string& address, TestClient*, const std::vector<v1::StepRequest>&)> make;
};

::testing::AssertionResult IsInFlight(TestClient* client, const std::vector<v1::StepRequest>& messages) {
  const v1::StepHeader& header = messages.front().header();
  return client->Reaches(header.set(), header.request_id(), v1::STEP_STATE_IN_FLIGHT);
}

absl::Status HalfClose(const std::string& /*address*/, TestClient* client,
                       const std::vector<v1::StepRequest>& messages) {
  StepStream stream(client->stub());
  EXPECT_TRUE(stream.Send(messages));
  stream.HalfClose();
  return stream.Finish();
}

absl::Status Cancel(const std::string& /*address*/, TestClient* client, const std::vector<v1::StepRequest>& messages) {
  StepStream stream(client->stub());
  EXPECT_TRUE(stream.Send(messages));
  EXPECT_TRUE(IsInFlight(client, messages));
  stream.Cancel();
  return stream.Finish();
}

absl::Status ExceedDeadline(const std::string& /*address*/, TestClient* client,
                            const std::vector<v1::StepRequest>& messages) {
  StepStream stream(client->stub(), absl::Milliseconds(50));
  stream.Send(messages);
  return stream.Finish();
}

absl::Status SendWrongLastChunk(const std::string& /*address*/, TestClient* client,
                                const std::vector<v1::StepRequest>& messages) {
  StepStream stream(client->stub());
  EXPECT_TRUE(stream.Send(messages));
  v1::StepRequest last;
  last.set_last(true);
  last.add_chunks()->set_tensor(99);
  last.mutable_chunks(0)->add_values(1);
  EXPECT_TRUE(stream.Send(last));
  return stream.Finish();
}

absl::Status SendLastTooEarly(const std::string& /*address*/, TestClient* client,
                              const std::vector<v1::StepRequest>& messages) {
  StepStream stream(client->stub());
  std::vector<v1::StepRequest> ending = messages;
  ending.back().set_last(true);
  EXPECT_TRUE(stream.Send(ending));
  return stream.Finish();
}

absl::Status KillTheProcess(const std::string& address, TestClient* client,
                            const std::vector<v1::StepRequest>& messages) {
  const std::string path = absl::StrCat(::testing::TempDir(), "cut_client_messages-", getpid());
  {
    std::ofstream file(path, std::ios::binary);
    for (const v1::StepRequest& message : messages) {
      EXPECT_TRUE(google::protobuf::util::SerializeDelimitedToOstream(message, &file));
    }
  }
  ChildProgram program({ADAMANT_CUT_CLIENT, address, path});
  EXPECT_TRUE(program.standard_output().AwaitLine("sent").has_value());
  EXPECT_TRUE(IsInFlight(client, messages));
  program.Signal(SIGKILL);
  return program.Wait() == 128 + SIGKILL ? absl::CancelledError("killed") : absl::InternalError("not killed");
}

const Cut kCuts[] = {{"HalfClose", absl::StatusCode::kInvalidArgument, &HalfClose},
                     {"Cancel", absl::StatusCode::kCancelled, &Cancel},
                     {"Deadline", absl::StatusCode::kDeadlineExceeded, &ExceedDeadline},
                     {"WrongLastChunk", absl::StatusCode::kInvalidArgument, &SendWrongLastChunk},
                     {"LastTooEarly", absl::StatusCode::kInvalidArgument, &SendLastTooEarly},
                     {"Kill", absl::StatusCode::kCancelled, &KillTheProcess}};

void PrintTo(const Cut& cut, std::ostream* out) { *out << cut.name; }

struct Size {
  std::string name;
  v1::ParameterSetSpec spec;
  int64_t chunk;  // elements, at most
};

void PrintTo(const Size& size, std::ostream* out) { *out << size.name; }

const Size kSizes[] = {{"Small", SmallSpec(), 20}, {"Large", LargeSpec(), 65536}};

class AtomicTest : public ServerTest, public ::testing::WithParamInterface<std::tuple<Size, Cut>> {
 protected:
  AtomicTest() : model_(spec_) { MakeSet(spec_); }

  std::string RequestId(int64_t step) const { return absl::StrCat("request ", step); }

  Values GradientOf(int64_t step) const { return Gradient(ParameterCount(spec_), step + 1); }

  std::vector<v1::StepRequest> Messages(int64_t step, int32_t attempt) const {
    return StepMessages(StepHeader(spec_.name(), RequestId(step), step, attempt),
                        Chunks(spec_, GradientOf(step), std::get<Size>(GetParam()).chunk));
  }

  // Makes the step, and expects the bits of a run in which nothing was ever cut.
  void Commit(int64_t step, int32_t attempt) {
    model_.Apply(GradientOf(step));
    StepStream stream(client_.stub());
    ASSERT_TRUE(stream.Send(Messages(step, attempt)));
    const absl::StatusOr<StepReply> reply = stream.ReadReply(spec_);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->result.step(), step + 1);
    EXPECT_FALSE(reply->result.replayed());
    EXPECT_TRUE(SameBits(reply->parameters, model_.arrays().parameters));
    EXPECT_TRUE(*client_.ReadArrays(spec_) == model_.arrays());
  }

  // What the set remembers of the steps before `step`.
  std::vector<std::string> Remembered(int64_t step) {
    std::vector<std::string> results;
    for (int64_t i = 0; i < step; ++i) {
      results.push_back(client_.GetStepResult(spec_.name(), RequestId(i))->SerializeAsString());
    }
    return results;
  }

  const v1::ParameterSetSpec spec_ = std::get<Size>(GetParam()).spec;
  SequentialModel model_;
};

TEST_P(AtomicTest, CutAfterAnyMessageChangesNothingAndTheRetryCommits) {
  const Cut& cut = std::get<Cut>(GetParam());
  Commit(0, 1);
  std::map<std::string, int64_t> budgets = client_.UsedBudgets();
  budgets["inflight"] = budgets["read"] = budgets["streams"] = 0;
  const int64_t messages = static_cast<int64_t>(Messages(0, 1).size());
  ASSERT_GE(messages, 6);
  for (int64_t sent = 1; sent < messages; ++sent) {
    SCOPED_TRACE(absl::StrCat("after ", sent, " of ", messages, " messages"));
    const int64_t step = sent;
    ASSERT_TRUE(client_.ReturnsTo(budgets));
    const absl::StatusOr<SetState> before = client_.ReadState(spec_);
    ASSERT_TRUE(before.ok()) << before.status();
    const std::vector<std::string> remembered = Remembered(step);
    std::vector<v1::StepRequest> beginning = Messages(step, 1);
    beginning.resize(sent);

    const absl::Status status = cut.make(server_.address(), &client_, beginning);

    EXPECT_EQ(status.code(), cut.code) << status;
    EXPECT_TRUE(client_.ReturnsTo(budgets));
    EXPECT_TRUE(client_.Reaches(spec_.name(), RequestId(step), v1::STEP_STATE_UNKNOWN));
    EXPECT_TRUE(*client_.ReadState(spec_) == *before);
    EXPECT_EQ(Remembered(step), remembered);
    Commit(step, 2);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryWay, AtomicTest,
                         ::testing::Combine(::testing::ValuesIn(kSizes), ::testing::ValuesIn(kCuts)),
                         [](const auto& info) {
                           return std::get<Size>(info.param).name + std::get<Cut>(info.param).name;
                         });

}  // namespace
}  // namespace adamant::e2e
