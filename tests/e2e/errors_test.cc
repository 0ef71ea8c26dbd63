// tests/errors.textproto, row by row: each call ends with the error that the table says, changes nothing, and leaves a
// server that works.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/core/memory/block.h"
#include "server/core/set/staging.h"
#include "server/store/file_system.h"
#include "server/store/store.h"
#include "tests/e2e/errors_table.h"
#include "tests/e2e/server_fixture.h"
#include "tests/store/simulated_file_system.h"

namespace adamant::e2e {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const ErrorsTable& Table() {
  static const auto* const table = new ErrorsTable(LoadErrorsTable(ADAMANT_ERRORS_TABLE));
  return *table;
}

// Makes the call, whatever its method and its messages are, and returns how it ended. To gRPC the messages are bytes,
// and a call with one message each way is a stream like any other.
absl::Status Make(const Call& call, TestClient* client) {
  using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;
  const std::string path = absl::StrCat("/adamant.v1.OptimizerService/", MethodOf(call));
  const grpc::internal::RpcMethod method(path.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING, client->channel());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
  const std::unique_ptr<Stream> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(client->channel().get(),
                                                                                            method, &context));
  for (const std::string& message : MessagesOf(call)) {
    const grpc::Slice slice(message);
    if (!stream->Write(grpc::ByteBuffer(&slice, 1))) break;
  }
  stream->WritesDone();
  for (grpc::ByteBuffer response; stream->Read(&response);) {
  }
  return wire::FromGrpcStatus(stream->Finish());
}

// All sets, with all that they hold, but for how many gradients were not finite: one that is rejected counts there,
// too.
std::map<std::string, SetState> ReadEverything(TestClient* client) {
  std::map<std::string, SetState> everything;
  const absl::StatusOr<v1::ListParameterSetsResponse> sets =
      client->Call(&v1::OptimizerService::Stub::ListParameterSets, v1::ListParameterSetsRequest());
  EXPECT_TRUE(sets.ok()) << sets.status();
  if (!sets.ok()) return everything;
  for (const v1::ParameterSet& set : sets->parameter_sets()) {
    v1::ListTensorsRequest request;
    request.set_name(set.name());
    const absl::StatusOr<v1::ListTensorsResponse> tensors =
        client->Call(&v1::OptimizerService::Stub::ListTensors, request);
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    if (!tensors.ok()) continue;
    v1::ParameterSetSpec spec;
    spec.set_name(set.name());
    *spec.mutable_groups() = set.groups();
    for (const v1::Tensor& tensor : tensors->tensors()) *spec.add_tensors()->mutable_shape() = tensor.shape();
    absl::StatusOr<SetState> state = client->ReadState(spec);
    EXPECT_TRUE(state.ok()) << state.status();
    if (!state.ok()) continue;
    state->description.mutable_statistics()->clear_non_finite();
    everything[set.name()] = *std::move(state);
  }
  return everything;
}

const Reason* FindReason(v1::ErrorReason reason) {
  for (const Reason& candidate : Table().reasons()) {
    if (candidate.reason() == reason) return &candidate;
  }
  return nullptr;
}

// A server with room for the setup and for one set whose steps take as much as the budget for steps has.
rpc::ServerOptions ServerOfTheTable() {
  rpc::ServerOptions options = SmallServer();
  options.inflight_bytes = int64_t{16} << 20;
  options.state_bytes = int64_t{48} << 20;
  return options;
}

// A data directory, where every step of all sets is kept. What is in it ends with this.
class DataDirectory {
 public:
  explicit DataDirectory(store::FileSystem* files = store::PosixFileSystem()) {
    EXPECT_NE(mkdtemp(path_.data()), nullptr) << path_;
    if (files != store::PosixFileSystem()) {
      // SQLite's files are the system's own, and as for the others their folder is there.
      for (size_t end = path_.find('/', 1); end != std::string::npos; end = path_.find('/', end + 1)) {
        EXPECT_TRUE(files->MakeDirectory(path_.substr(0, end)).ok());
      }
    }
    store::StoreOptions options;
    options.directory = path_;
    options.default_durability.mutable_every_step();
    absl::StatusOr<std::unique_ptr<store::Store>> opened = store::Store::Open(files, options);
    if (!opened.ok()) {
      ADD_FAILURE() << opened.status();
      std::abort();
    }
    store_ = *std::move(opened);
  }
  ~DataDirectory() {
    store_.reset();
    std::filesystem::remove_all(path_);
  }

  const std::string& path() const { return path_; }

  // A server that is so, and has it.
  rpc::ServerOptions Served(rpc::ServerOptions options) const {
    options.journal = store_.get();
    options.restore = [store = store_.get()](core::Registry* registry) { return store->Restore(registry); };
    options.begin_changes = [store = store_.get()] { return store->BeginChanges(); };
    return options;
  }

 private:
  std::string path_ = testing::TempDir() + "/errors_test-XXXXXX";
  std::unique_ptr<store::Store> store_;
};

class ErrorsTest : public ::testing::TestWithParam<Row> {
 protected:
  const std::unique_ptr<DataDirectory> data_directory_ =
      GetParam().data_directory() ? std::make_unique<DataDirectory>() : nullptr;
  TestServer server_{data_directory_ ? data_directory_->Served(ServerOfTheTable()) : ServerOfTheTable()};
  TestClient client_{server_.address()};
};

TEST_P(ErrorsTest, EndsTheCallAndChangesNothing) {
  const Row& row = GetParam();
  SCOPED_TRACE(row.rule());
  for (const Call& call : Table().setup()) {
    const absl::Status status = Make(call, &client_);
    ASSERT_TRUE(status.ok()) << status;
  }
  const std::map<std::string, SetState> before = ReadEverything(&client_);
  ASSERT_FALSE(before.empty());
  std::map<std::string, int64_t> budgets = client_.UsedBudgets();
  budgets["read"] = budgets["streams"] = budgets["waiting"] = 0;
  // The round that is open, of two parameters in one tensor: a window of two, and the sum.
  budgets["inflight"] = 3 * (core::BlockPool::ChargedBytes(16) + core::Coverage::MemoryBytes(1));

  const absl::Status status = Make(row.call(), &client_);

  EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(row.code())) << status;
  v1::ErrorDetail detail = GetErrorDetail(status);
  detail.clear_incarnation();
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(detail, row.detail()))
      << "expected " << row.detail().ShortDebugString() << "\ngot " << detail.ShortDebugString() << "\n"
      << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(row.message()));
  // People find the field in one place, and in one form.
  if (!detail.field().empty()) {
    EXPECT_THAT(std::string(status.message()), StartsWith(absl::StrCat("`", detail.field(), "`: ")));
  }
  const Reason* reason = FindReason(row.detail().reason());
  EXPECT_EQ(GetRetryDelay(status).has_value(), reason != nullptr && reason->retry_info());
  EXPECT_TRUE(client_.ReturnsTo(budgets));
  EXPECT_TRUE(ReadEverything(&client_) == before);
  EXPECT_TRUE(client_.ReturnsTo(budgets));
}

// A rule as the name of a test: `A chunk's end` becomes AChunksEnd.
std::string TestName(const ::testing::TestParamInfo<Row>& info) {
  std::string name;
  bool word_begins = true;
  for (const char c : info.param.rule()) {
    if (absl::ascii_isalnum(c)) name += word_begins ? absl::ascii_toupper(c) : c;
    word_begins = !absl::ascii_isalnum(c) && c != '\'';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(EveryRule, ErrorsTest, ::testing::ValuesIn(Table().rows()), TestName);

// What a status says, as far as a client acts on it.
::testing::AssertionResult FailsWith(const absl::Status& status, absl::StatusCode code, v1::ErrorReason reason) {
  const Reason* row = FindReason(reason);
  if (status.code() == code && ReasonOf(status) == reason && row != nullptr &&
      GetRetryDelay(status).has_value() == row->retry_info()) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "expected " << v1::ErrorReason_Name(reason) << ", got "
                                       << v1::ErrorReason_Name(ReasonOf(status)) << ", " << status;
}

// Errors that take time, or another call that is under way.
class ErrorsOverTimeTest : public ::testing::Test {
 protected:
  // Serves a set of 329,997 parameters, `large`.
  void Serve(const rpc::ServerOptions& options) {
    server_ = std::make_unique<TestServer>(options);
    client_ = std::make_unique<TestClient>(server_->address());
    const absl::StatusOr<v1::CreateParameterSetResponse> created = client_->Create(spec_);
    ASSERT_TRUE(created.ok()) << created.status();
  }

  absl::StatusOr<StepReply> Step() { return client_->Step(spec_, StepHeader("large"), gradient_); }

  // Until something that was sent has taken memory of that budget.
  ::testing::AssertionResult Holds(const std::string& budget) {
    if (TestClient::Until([&] { return client_->UsedBudgets()[budget] > 0; })) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "nothing is held of " << budget;
  }

  const v1::ParameterSetSpec spec_ = LargeSpec();
  const Values gradient_ = Gradient(ParameterCount(spec_), 1);
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<TestClient> client_;
};

TEST_F(ErrorsOverTimeTest, SecondWriteIsAborted) {
  Serve(SmallServer());
  grpc::ClientContext context;
  v1::WriteTensorsResponse response;
  const auto first = client_->stub()->WriteTensors(&context, &response);
  v1::WriteTensorsRequest request;
  request.mutable_header()->set_set("large");
  request.mutable_header()->set_mode(v1::WRITE_MODE_PARAMETERS);
  ASSERT_TRUE(first->Write(request));
  ASSERT_TRUE(Holds("inflight"));

  const absl::Status second =
      client_->Write(spec_, core::ParametersHeader(), {.parameters = gradient_, .exp_avg = {}, .exp_avg_sq = {}})
          .status();

  EXPECT_TRUE(FailsWith(second, absl::StatusCode::kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS));
  context.TryCancel();
  EXPECT_EQ(first->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ErrorsOverTimeTest, CallBeyondThoseThatMayWaitIsRefused) {
  rpc::ServerOptions options = SmallServer();
  options.max_streams = 1;
  options.max_waiting_calls = 1;
  Serve(options);
  StepStream first(client_->stub());
  ASSERT_TRUE(Holds("streams"));
  StepStream waits(client_->stub());
  ASSERT_TRUE(Holds("waiting"));

  const absl::Status refused = Step().status();

  EXPECT_TRUE(FailsWith(refused, absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS));
  for (StepStream* stream : {&first, &waits}) {
    EXPECT_TRUE(stream->Send(StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536))));
    EXPECT_TRUE(stream->ReadReply(spec_).ok());
    stream->Cancel();
  }
}

TEST_F(ErrorsOverTimeTest, MessageAboveTheLimitIsToldWhatToSendInstead) {
  Serve(SmallServer());
  StepStream stream(client_->stub());
  v1::StepRequest message;
  *message.mutable_header() = StepHeader("large");
  message.add_chunks()->set_data(std::string(size_t{4} << 20, '\0'));
  stream.Send(message);

  const absl::Status status = stream.Finish();

  EXPECT_TRUE(FailsWith(status, absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_MESSAGE_TOO_LARGE));
  EXPECT_TRUE(absl::StrContains(status.message(), "262,144 elements")) << status;
}

// A stream is not a set's: what is wrong between two steps is wrong with none.
TEST_F(ErrorsOverTimeTest, ErrorBetweenTwoStepsNamesNoSet) {
  Serve(SmallServer());
  StepStream stream(client_->stub());
  ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536))));
  ASSERT_TRUE(stream.ReadReply(spec_).ok());
  ASSERT_TRUE(stream.Send(v1::StepRequest()));

  const absl::Status status = stream.Finish();

  EXPECT_TRUE(FailsWith(status, absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNEXPECTED_MESSAGE));
  EXPECT_EQ(GetErrorDetail(status).set(), "");
}

TEST_F(ErrorsOverTimeTest, StepThatStallsIsEnded) {
  rpc::ServerOptions options = SmallServer();
  options.patience = absl::Milliseconds(100);
  options.think_time = absl::Milliseconds(100);
  options.min_rate = 1e9;
  Serve(options);
  const std::map<std::string, int64_t> budgets = client_->UsedBudgets();
  StepStream stream(client_->stub());
  ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536)).front()));

  const absl::Status status = stream.Finish();

  EXPECT_TRUE(FailsWith(status, absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED));
  EXPECT_EQ(GetErrorDetail(status).set(), "large");
  EXPECT_EQ(client_->Get("large")->step(), 0);
  EXPECT_TRUE(client_->ReturnsTo(budgets));
}

TEST_F(ErrorsOverTimeTest, StepWithoutItsLastIsToldThatThisIsMissing) {
  rpc::ServerOptions options = SmallServer();
  options.patience = absl::Milliseconds(100);
  options.think_time = absl::Milliseconds(100);
  options.min_rate = 1e9;
  Serve(options);
  StepStream stream(client_->stub());
  std::vector<v1::StepRequest> messages = StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536));
  messages.back().clear_last();
  ASSERT_TRUE(stream.Send(messages));

  const absl::Status status = stream.Finish();

  EXPECT_TRUE(FailsWith(status, absl::StatusCode::kDeadlineExceeded, v1::ERROR_REASON_STALLED));
  EXPECT_TRUE(absl::StrContains(status.message(), "the step's `last`: every element has come")) << status;
  EXPECT_EQ(GetErrorDetail(status).set(), "large");
}

TEST_F(ErrorsOverTimeTest, StepThatStallsIsToldWhereItWouldGoOn) {
  rpc::ServerOptions options = SmallServer();
  options.patience = absl::Milliseconds(100);
  options.think_time = absl::Milliseconds(100);
  options.min_rate = 1e9;
  Serve(options);
  StepStream stream(client_->stub());
  v1::StepRequest message;
  *message.mutable_header() = StepHeader("large");
  *message.add_chunks() = Chunks(spec_, gradient_, 1000).front();
  ASSERT_TRUE(stream.Send(message));

  const v1::ErrorDetail detail = GetErrorDetail(stream.Finish());

  EXPECT_EQ(detail.reason(), v1::ERROR_REASON_STALLED);
  EXPECT_EQ(detail.set(), "large");
  EXPECT_EQ(detail.tensor(), 0);
  EXPECT_EQ(detail.expected_offset(), 1000);
}

TEST_F(ErrorsOverTimeTest, StepThatFindsNoRoomInTimeIsRefused) {
  rpc::ServerOptions options = SmallServer();
  options.inflight_bytes = 3 * (int64_t{1} << 19);
  options.admission_wait = absl::Milliseconds(50);
  Serve(options);
  StepStream first(client_->stub());
  const std::vector<v1::StepRequest> messages = StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536));
  ASSERT_TRUE(first.Send(messages.front()));
  ASSERT_TRUE(Holds("inflight"));

  const absl::Status second = Step().status();

  EXPECT_TRUE(FailsWith(second, absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_BUDGET_EXHAUSTED));
  EXPECT_EQ(GetErrorDetail(second).set(), "large");
  EXPECT_TRUE(first.Send({messages.begin() + 1, messages.end()}));
  EXPECT_TRUE(first.ReadReply(spec_).ok());
}

TEST_F(ErrorsOverTimeTest, ReadThatFindsNoRoomIsRefused) {
  rpc::ServerOptions options = SmallServer();
  options.read_bytes = 3 * (int64_t{1} << 20);
  Serve(options);
  grpc::ClientContext context;
  v1::ReadTensorsRequest request;
  request.set_set("large");
  request.add_slots(v1::SLOT_PARAMETER);
  request.add_slots(v1::SLOT_EXP_AVG);
  const auto first = client_->stub()->ReadTensors(&context, request);
  v1::ReadTensorsResponse response;
  ASSERT_TRUE(first->Read(&response));

  const absl::Status second = client_->ReadArrays(spec_).status();

  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition) << "three arrays never fit";
  grpc::ClientContext other_context;
  const auto third = client_->stub()->ReadTensors(&other_context, request);
  EXPECT_FALSE(third->Read(&response));
  EXPECT_TRUE(FailsWith(wire::FromGrpcStatus(third->Finish()), absl::StatusCode::kResourceExhausted,
                        v1::ERROR_REASON_BUDGET_EXHAUSTED));
  while (first->Read(&response)) {
  }
  EXPECT_TRUE(first->Finish().ok());
}

TEST_F(ErrorsOverTimeTest, ReadWithoutRoomEndsAtTheNextStep) {
  rpc::ServerOptions options = SmallServer();
  options.read_bytes = 1;
  Serve(options);
  grpc::ClientContext context;
  v1::ReadTensorsRequest request;
  request.set_set("large");
  for (const v1::Slot slot : {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ}) request.add_slots(slot);
  request.set_may_abort(true);
  const auto read = client_->stub()->ReadTensors(&context, request);
  v1::ReadTensorsResponse response;
  ASSERT_TRUE(read->Read(&response));
  EXPECT_EQ(response.header().step(), 0);

  // Four messages are to come; flow control keeps the server from having sent them all by now.
  ASSERT_TRUE(Step().ok());
  while (read->Read(&response)) {
  }

  EXPECT_TRUE(
      FailsWith(wire::FromGrpcStatus(read->Finish()), absl::StatusCode::kAborted, v1::ERROR_REASON_SNAPSHOT_GONE));
}

TEST_F(ErrorsOverTimeTest, IdleStreamEndsWhenTheServerDrains) {
  Serve(SmallServer());
  StepStream stream(client_->stub());
  ASSERT_TRUE(stream.Send(StepMessages(StepHeader("large"), Chunks(spec_, gradient_, 65536))));
  ASSERT_TRUE(stream.ReadReply(spec_).ok());

  server_->Drain(absl::Seconds(10));

  EXPECT_TRUE(FailsWith(stream.Finish(), absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING));
}

// A set of 5,000 parameters, of which every step is kept on a disk that does what a test says.
class StoreErrorsTest : public ::testing::Test {
 protected:
  static v1::ParameterSetSpec Spec(const std::string& name) {
    v1::ParameterSetSpec spec;
    spec.set_name(name);
    spec.set_initialization(v1::INITIALIZATION_ZEROS);
    v1::TensorSpec* const tensor = spec.add_tensors();
    tensor->set_name("w");
    tensor->add_shape(5000);
    return spec;
  }
  absl::Status Create(const std::string& name) { return client_.Create(Spec(name)).status(); }
  absl::Status Step(const std::string& name) {
    return client_.Step(Spec(name), StepHeader(name), Gradient(5000, 1)).status();
  }

  store::SimulatedFileSystem disk_;
  DataDirectory data_directory_{&disk_};
  TestServer server_{data_directory_.Served(SmallServer())};
  TestClient client_{server_.address()};
};

TEST_F(StoreErrorsTest, ASetForWhichTheDiskHasNoRoomIsRefused) {
  disk_.SetCapacity(100'000);

  EXPECT_TRUE(FailsWith(Create("s"), absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_DISK_EXHAUSTED));

  EXPECT_EQ(client_.Get("s").status().code(), absl::StatusCode::kNotFound);
  disk_.SetCapacity(int64_t{1} << 30);
  EXPECT_TRUE(Create("s").ok());
  EXPECT_TRUE(Step("s").ok());
}

TEST_F(StoreErrorsTest, AfterADiskThatFailedNothingDurableChanges) {
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Step("s").ok());
  disk_.FailCall(disk_.calls() + 1, store::SimulatedFileSystem::Fault::kIoError);

  EXPECT_TRUE(FailsWith(Step("s"), absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED));

  EXPECT_TRUE(FailsWith(Step("s"), absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED));
  EXPECT_TRUE(FailsWith(Create("t"), absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED));
  EXPECT_TRUE(client_.ReadArrays(Spec("s")).ok());
}

// Its record may be on disk: a client that hears that nobody knows of it would send its gradient once more.
TEST_F(StoreErrorsTest, OfAStepThatMayBeOnDiskNobodySaysThatItIsUnknown) {
  ASSERT_TRUE(Create("s").ok());
  EXPECT_EQ(client_.GetStepResult("s", "r")->state(), v1::STEP_STATE_UNKNOWN);
  disk_.FailCall(disk_.calls() + 1, store::SimulatedFileSystem::Fault::kIoError);
  v1::StepHeader header = StepHeader("s");
  header.set_request_id("r");
  header.set_expected_step(0);
  const absl::Status step = client_.Step(Spec("s"), header, Gradient(5000, 1)).status();
  ASSERT_TRUE(FailsWith(step, absl::StatusCode::kUnavailable, v1::ERROR_REASON_STORE_FAILED));

  EXPECT_TRUE(FailsWith(client_.GetStepResult("s", "r").status(), absl::StatusCode::kUnavailable,
                        v1::ERROR_REASON_STORE_FAILED));
}

TEST_F(StoreErrorsTest, WhoWatchesTheHealthHearsThatTheDiskHasFailed) {
  namespace health = ::grpc::health::v1;
  ASSERT_TRUE(Create("s").ok());
  const std::unique_ptr<health::Health::Stub> stub = health::Health::NewStub(client_.channel());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
  health::HealthCheckResponse response;
  const auto watch = stub->Watch(&context, {});
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);

  disk_.FailCall(disk_.calls() + 1, store::SimulatedFileSystem::Fault::kIoError);
  EXPECT_FALSE(Step("s").ok());

  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  grpc::ClientContext check_context;
  check_context.set_deadline(absl::ToChronoTime(absl::Now() + kHang));
  ASSERT_TRUE(stub->Check(&check_context, {}, &response).ok());
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  // It was told already that nothing is served.
  server_.Drain(absl::Seconds(10));
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_TRUE(
      FailsWith(wire::FromGrpcStatus(watch->Finish()), absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING));
}

TEST_F(StoreErrorsTest, ACheckpointThatIsDamagedIsNotRestored) {
  ASSERT_TRUE(Create("s").ok());
  ASSERT_TRUE(Step("s").ok());
  v1::CheckpointRequest request;
  request.set_set("s");
  const absl::StatusOr<v1::CheckpointResponse> made = client_.Call(&v1::OptimizerService::Stub::Checkpoint, request);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string folder = absl::StrCat(data_directory_.path(), "/sets/",
                                          disk_.List(data_directory_.path() + "/sets")->front(), "/checkpoints");
  const std::string checkpoint = absl::StrCat(folder, "/", disk_.List(folder)->front());
  const std::vector<std::string> files = *disk_.List(checkpoint);
  for (const std::string& file : files) {
    if (absl::EndsWith(file, ".safetensors")) disk_.FlipBit(absl::StrCat(checkpoint, "/", file), 8 * 10'000);
  }
  v1::RestoreCheckpointRequest restore;
  restore.set_set("s");
  restore.set_checkpoint_incarnation(made->checkpoint().incarnation());
  restore.set_checkpoint_step(made->checkpoint().step());

  const absl::Status restored = client_.Call(&v1::OptimizerService::Stub::RestoreCheckpoint, restore).status();

  EXPECT_TRUE(FailsWith(restored, absl::StatusCode::kDataLoss, v1::ERROR_REASON_DAMAGED));
  EXPECT_EQ(client_.Get("s")->state(), v1::PARAMETER_SET_STATE_READY);
  EXPECT_TRUE(Step("s").ok());
}

// Whether a test of this name, SUITE.NAME, stands in a source below tests/.
bool TestExists(const std::string& name) {
  const size_t dot = name.find('.');
  const std::string suite_and_name = absl::StrCat("(", name.substr(0, dot), ", ", name.substr(dot + 1), ")");
  for (const auto& entry : std::filesystem::recursive_directory_iterator(ADAMANT_TESTS_DIRECTORY)) {
    if (!absl::EndsWith(entry.path().string(), "_test.cc")) continue;
    std::ifstream file(entry.path());
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    for (const char* macro : {"TEST", "TEST_F", "TEST_P"}) {
      if (absl::StrContains(text, macro + suite_and_name)) return true;
    }
  }
  return false;
}

TEST(ErrorsTableTest, HasEveryReasonOnceAndDrivesIt) {
  std::map<int, int> reasons;
  std::map<int, int> rows;
  for (const Reason& reason : Table().reasons()) {
    ++reasons[reason.reason()];
    EXPECT_FALSE(reason.meaning().empty() || reason.remedy().empty()) << reason.ShortDebugString();
    if (!reason.driven_by().empty()) {
      EXPECT_TRUE(TestExists(reason.driven_by())) << "there is no test " << reason.driven_by();
      ++rows[reason.reason()];
    }
  }
  for (const Row& row : Table().rows()) ++rows[row.detail().reason()];
  const google::protobuf::EnumDescriptor* all = v1::ErrorReason_descriptor();
  for (int i = 0; i < all->value_count(); ++i) {
    const google::protobuf::EnumValueDescriptor* reason = all->value(i);
    if (reason->number() == v1::ERROR_REASON_UNSPECIFIED) continue;
    EXPECT_EQ(reasons[reason->number()], 1) << reason->name();
    EXPECT_GE(rows[reason->number()], 1) << reason->name() << " has neither a row nor a test";
  }
}

TEST(ErrorsTableTest, GivesEachReasonOneCode) {
  for (const Row& row : Table().rows()) {
    if (!row.has_detail()) continue;
    const Reason* reason = FindReason(row.detail().reason());
    ASSERT_NE(reason, nullptr) << row.rule();
    EXPECT_EQ(Code_Name(row.code()), Code_Name(reason->code())) << row.rule();
  }
}

}  // namespace
}  // namespace adamant::e2e
