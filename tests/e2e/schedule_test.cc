// Random schedules of what several clients do to one set, over their own connections, against a sequential model.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "tests/e2e/server_fixture.h"

namespace adamant::e2e {
namespace {

constexpr int kSchedules = 200;
constexpr int kOperations = 40;
constexpr int kClients = 3;

// One schedule: clients take turns, so that the model knows what each operation must bring. What it cannot know,
// whether a step that was cancelled after its last message had arrived, it asks GetStepResult, as a client would.
class Schedule {
 public:
  Schedule(const std::string& address, uint64_t seed)
      : random_(seed), spec_(SmallSpec(absl::StrCat("schedule-", seed))), model_(spec_) {
    for (int i = 0; i < kClients; ++i) clients_.push_back({std::make_unique<TestClient>(address), nullptr, {}, {}, 0});
    Create();
  }

  void Run() {
    for (int i = 0; i < kOperations && !::testing::Test::HasFailure(); ++i) {
      Client& client = clients_[Draw(kClients)];
      switch (Draw(12)) {
        case 0:
        case 1:
          Cancel(&client);
          break;
        case 2:
          HalfClose(&client);
          break;
        case 3:
          CancelAfterLast(&client);
          break;
        case 4:
          Retry(&client);
          break;
        case 5:
          Supersede(&client);
          break;
        case 6:
          Read(&client);
          break;
        case 7:
          if (Draw(4) == 0) Delete(&client);
          break;
        default:
          Advance(&client);
      }
    }
    for (Client& client : clients_) Cancel(&client);
    Read(&clients_.front());
    EXPECT_TRUE(clients_.front().connection->Delete(spec_.name()).ok());
  }

 private:
  // One step, as all of its attempts send it.
  struct Request {
    std::string id;
    int64_t expected_step;
    uint64_t gradient;
    int32_t attempt;
  };

  struct Client {
    std::unique_ptr<TestClient> connection;
    std::unique_ptr<StepStream> stream;  // of the step under way; null: none
    Request request;
    std::vector<v1::StepRequest> messages;
    size_t sent;
  };

  uint64_t Draw(uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random_); }

  void Create() {
    const absl::StatusOr<v1::CreateParameterSetResponse> created = clients_.front().connection->Create(spec_);
    ASSERT_TRUE(created.ok()) << created.status();
    model_ = SequentialModel(spec_);
    committed_.clear();
  }

  Values GradientOf(const Request& request) const { return Gradient(model_.parameter_count(), request.gradient); }

  // Begins a step; when this returns the set knows of it.
  void Begin(Client* client, const Request& request) {
    client->request = request;
    client->messages = StepMessages(StepHeader(spec_.name(), request.id, request.expected_step, request.attempt),
                                    Chunks(spec_, GradientOf(request), 20));
    client->stream = std::make_unique<StepStream>(client->connection->stub());
    client->sent = 1;
    ASSERT_TRUE(client->stream->Send(client->messages.front()));
    ASSERT_TRUE(client->connection->Reaches(spec_.name(), request.id, v1::STEP_STATE_IN_FLIGHT));
  }

  // The next message of the step under way, or the first of a new one.
  void Advance(Client* client) {
    if (client->stream == nullptr) {
      Begin(client, {absl::StrCat("request ", ++requests_), model_.arrays().step, random_(), 1});
      return;
    }
    ASSERT_TRUE(client->stream->Send(client->messages[client->sent]));
    if (++client->sent < client->messages.size()) return;
    const absl::StatusOr<StepReply> reply = client->stream->ReadReply(spec_);
    if (client->request.expected_step == model_.arrays().step) {
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_FALSE(reply->result.replayed());
      Apply(client->request);
      ExpectParameters(*reply);
      client->stream->HalfClose();
      EXPECT_TRUE(client->stream->Finish().ok());
    } else {
      EXPECT_EQ(ReasonOf(reply.status()), v1::ERROR_REASON_STEP_MISMATCH) << reply.status();
    }
    client->stream.reset();
  }

  void Apply(const Request& request) {
    model_.Apply(GradientOf(request));
    committed_.push_back(request);
  }

  void ExpectParameters(const StepReply& reply) {
    EXPECT_EQ(reply.result.parameters_step(), model_.arrays().step);
    EXPECT_TRUE(SameBits(reply.parameters, model_.arrays().parameters));
  }

  // Breaks off a step that is not complete.
  void Cancel(Client* client) {
    if (client->stream == nullptr) return;
    client->stream->Cancel();
    EXPECT_EQ(client->stream->Finish().code(), absl::StatusCode::kCancelled);
    client->stream.reset();
    EXPECT_TRUE(client->connection->Reaches(spec_.name(), client->request.id, v1::STEP_STATE_UNKNOWN));
  }

  void HalfClose(Client* client) {
    if (client->stream == nullptr) return;
    client->stream->HalfClose();
    const absl::Status status = client->stream->Finish();
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_UNEXPECTED_MESSAGE) << status;
    client->stream.reset();
  }

  // Sends all the rest and cancels at once: the step is applied, or it is not.
  void CancelAfterLast(Client* client) {
    if (client->stream == nullptr) return;
    client->stream->Send({client->messages.begin() + client->sent, client->messages.end()});
    client->stream->Cancel();
    client->stream->Finish().IgnoreError();
    client->stream.reset();
    absl::StatusOr<v1::GetStepResultResponse> result;
    ASSERT_TRUE(TestClient::Until([&] {
      result = client->connection->GetStepResult(spec_.name(), client->request.id);
      return !result.ok() || result->state() != v1::STEP_STATE_IN_FLIGHT;
    }));
    ASSERT_TRUE(result.ok()) << result.status();
    const bool in_time = client->request.expected_step == model_.arrays().step;
    if (result->state() == v1::STEP_STATE_COMMITTED) {
      EXPECT_TRUE(in_time);
      Apply(client->request);
      return;
    }
    EXPECT_EQ(result->state(), v1::STEP_STATE_UNKNOWN);
    if (!in_time) return;
    // Now it is sent again, and applied for the first time.
    Request again = client->request;
    ++again.attempt;
    Begin(client, again);
  }

  // Sends a step again that was applied.
  void Retry(Client* client) {
    if (client->stream != nullptr || committed_.empty()) return;
    const Request& request = committed_[Draw(committed_.size())];
    const absl::StatusOr<StepReply> reply = client->connection->Step(
        spec_, StepHeader(spec_.name(), request.id, request.expected_step, request.attempt + 1), GradientOf(request));
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_TRUE(reply->result.replayed());
    EXPECT_EQ(reply->result.step(), request.expected_step + 1);
    ExpectParameters(*reply);
  }

  // Takes over another client's step.
  void Supersede(Client* client) {
    Client& other = clients_[Draw(kClients)];
    if (client->stream != nullptr || other.stream == nullptr) return;
    Request request = other.request;
    request.attempt += static_cast<int32_t>(Draw(2));
    if (request.expected_step != model_.arrays().step) return;
    Begin(client, request);
    const absl::Status status = other.stream->Finish();
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_SUPERSEDED) << status;
    other.stream.reset();
  }

  void Read(Client* client) {
    const absl::StatusOr<Arrays> arrays = client->connection->ReadArrays(spec_);
    ASSERT_TRUE(arrays.ok()) << arrays.status();
    EXPECT_TRUE(*arrays == model_.arrays());
  }

  // Deletes the set, under the steps that are under way, and creates it anew.
  void Delete(Client* client) {
    EXPECT_TRUE(client->connection->Delete(spec_.name()).ok());
    for (Client& each : clients_) {
      if (each.stream == nullptr) continue;
      const absl::Status status = each.stream->Finish();
      EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_SET_NOT_FOUND) << status;
      each.stream.reset();
    }
    Create();
  }

  std::mt19937_64 random_;
  const v1::ParameterSetSpec spec_;
  SequentialModel model_;
  std::vector<Client> clients_;
  std::vector<Request> committed_;  // all within the set's memory of 64
  int requests_ = 0;
};

TEST(ScheduleTest, EveryScheduleHasTheBitsOfTheSequentialModel) {
  TestServer server;
  TestClient client(server.address());
  const std::map<std::string, int64_t> budgets = client.UsedBudgets();
  const char* given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t first = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  const int schedules = given != nullptr ? 1 : kSchedules;
  for (uint64_t seed = first; seed < first + schedules; ++seed) {
    Schedule(server.address(), seed).Run();
    ASSERT_TRUE(client.ReturnsTo(budgets)) << "ADAMANT_TEST_SEED=" << seed;
    ASSERT_FALSE(HasFailure()) << "ADAMANT_TEST_SEED=" << seed;
  }
  std::cout << schedules << " schedules from seed " << first << "\n";
}

}  // namespace
}  // namespace adamant::e2e
