// The client over real gRPC, against a server that takes and sends raw messages as each test says.
#include "client/src/grpc_byte_stream.h"

#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "adamant/connection.h"
#include "adamant/error.h"
#include "client/src/channel.h"
#include "client/src/grpc_stub.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "proto/wire/status.h"
#include "proto/wire/tensor_cutter.h"
#include "proto/wire/tensor_message.h"
#include "proto/wire/tensor_message_builder.h"

namespace adamant {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;
using ::testing::StartsWith;

// A server that answers its calls one after the other, on a thread of its own.
class RawServer {
 public:
  // One call, of any method, as its handler sees it. Functions block; they return nothing, or false, when the call is
  // over.
  class Call {
   public:
    const std::string& method() const { return context_.method(); }
    std::optional<grpc::ByteBuffer> Read() {
      grpc::ByteBuffer message;
      stream_.Read(&message, this);
      return Await() ? std::make_optional(std::move(message)) : std::nullopt;
    }
    bool Write(const grpc::ByteBuffer& message) {
      stream_.Write(message, this);
      return Await();
    }
    void Finish(const absl::Status& status) {
      stream_.Finish(wire::ToGrpcStatus(status), this);
      Await();
    }

   private:
    friend class RawServer;
    explicit Call(grpc::ServerCompletionQueue* queue) : queue_(queue), stream_(&context_) {}

    bool Await() {
      void* tag;
      bool ok;
      return queue_->Next(&tag, &ok) && ok;
    }

    grpc::ServerCompletionQueue* const queue_;
    grpc::GenericServerContext context_;
    grpc::GenericServerAsyncReaderWriter stream_;
  };
  using Handler = std::function<void(Call*)>;

  RawServer(const std::string& address, Handler handler) : handler_(std::move(handler)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    thread_ = std::thread([this] { Serve(); });
  }

  ~RawServer() {
    server_->Shutdown(std::chrono::system_clock::now());
    thread_.join();
    queue_->Shutdown();
    void* tag;
    bool ok;
    while (queue_->Next(&tag, &ok)) {
    }
  }

 private:
  void Serve() {
    while (true) {
      Call call(queue_.get());
      service_.RequestCall(&call.context_, &call.stream_, queue_.get(), queue_.get(), &call);
      if (!call.Await()) return;
      handler_(&call);
    }
  }

  const Handler handler_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::thread thread_;
};

// A step as the server got it.
struct ReceivedStep {
  v1::StepHeader header;
  std::vector<size_t> message_sizes;
  size_t chunks_in_first_message = 0;
  std::vector<std::vector<float>> gradients;
};

// Reads one step of tensors of these sizes; nothing if the call ends before it is complete.
std::optional<ReceivedStep> ReceiveStep(RawServer::Call* call, const std::vector<int64_t>& sizes) {
  ReceivedStep step;
  for (int64_t size : sizes) step.gradients.emplace_back(size);
  while (std::optional<grpc::ByteBuffer> buffer = call->Read()) {
    absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(*buffer);
    EXPECT_TRUE(message.ok()) << message.status();
    if (message->has_header()) {
      EXPECT_TRUE(message->ParseHeader(&step.header).ok());
      step.chunks_in_first_message = message->chunks().size();
    }
    step.message_sizes.push_back(buffer->Length());
    for (wire::TensorMessage::Chunk& chunk : message->chunks()) {
      chunk.Read(step.gradients[chunk.tensor()].data() + chunk.offset(), chunk.count());
    }
    if (message->last()) return step;
  }
  return std::nullopt;
}

// Answers with the gradients, as if they were the parameters, in messages of 1 MiB.
void Reply(RawServer::Call* call, const ReceivedStep& step) {
  v1::StepResult result;
  result.set_outcome(v1::STEP_OUTCOME_APPLIED);
  result.set_step(step.header.expected_step() + 1);
  result.set_parameters_step(result.step());
  std::vector<int64_t> sizes;
  for (const std::vector<float>& tensor : step.gradients) sizes.push_back(tensor.size());
  wire::TensorCutter cutter(sizes, v1::SLOT_UNSPECIFIED, wire::ChunkForm::kData);
  while (!cutter.done()) {
    const auto copies = std::make_shared<const std::vector<std::vector<float>>>(step.gradients);
    wire::TensorMessageBuilder builder(copies);
    cutter.Fill(
        wire::kMessageBytes,
        [&](int32_t tensor, int64_t begin, int64_t end, wire::TensorMessageBuilder* message) {
          message->AddElements((*copies)[tensor].data() + begin, end - begin);
          return true;
        },
        &builder);
    if (cutter.done()) builder.SetHeader(result);
    if (!call->Write(builder.Finish())) return;
  }
}

class GrpcByteStreamTest : public ::testing::Test {
 protected:
  // For good: gRPC 1.51, taken down by the last object of one test to be set up again by the first of the next,
  // sometimes waits for its own threads for ever.
  static void SetUpTestSuite() { grpc_init(); }

  GrpcByteStreamTest() {
    options_.retry.initial_backoff = options_.retry.max_backoff = absl::Milliseconds(1);
    options_.retry.max_attempts = 1;
  }

  std::shared_ptr<Connection> Connect() {
    absl::StatusOr<std::shared_ptr<Connection>> connection = MakeConnection(address_, options_);
    EXPECT_TRUE(connection.ok()) << connection.status();
    return *std::move(connection);
  }

  // Makes tensors of these sizes, the gradients different from element to element.
  void MakeTensors(const std::vector<int64_t>& sizes) {
    float next = 1;
    for (int64_t size : sizes) {
      gradients_.emplace_back(size);
      parameters_.emplace_back(size);
      for (float& element : gradients_.back()) element = next++;
    }
  }

  absl::StatusOr<v1::StepResult> Step(Connection* connection) {
    const std::vector<absl::Span<const float>> gradients(gradients_.begin(), gradients_.end());
    std::vector<absl::Span<float>> parameters;
    for (std::vector<float>& tensor : parameters_) parameters.push_back(absl::MakeSpan(tensor));
    StepCall call;
    call.header.set_set("mlp");
    call.header.set_expected_step(0);
    call.gradients = gradients;
    call.parameters = parameters;
    return connection->Step(call);
  }

  const std::string address_ = absl::StrCat("unix:", ::testing::TempDir(), "/grpc_byte_stream_test.", getpid());
  ClientOptions options_;
  std::vector<std::vector<float>> gradients_;
  std::vector<std::vector<float>> parameters_;
};

TEST_F(GrpcByteStreamTest, LargeStepSendsItsHeaderAheadAndSplitsTensorsIntoMessages) {
  const std::vector<int64_t> sizes = {700'000, 1, 300'001};
  MakeTensors(sizes);
  ReceivedStep step;
  absl::StatusOr<v1::StepResult> result;
  {
    RawServer server(address_, [&](RawServer::Call* call) {
      step = ReceiveStep(call, sizes).value_or(ReceivedStep());
      Reply(call, step);
      call->Finish(absl::OkStatus());
    });
    result = Step(Connect().get());
  }  // the server's thread, which wrote `step`, has ended

  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step(), 1);
  EXPECT_EQ(step.header.set(), "mlp");
  EXPECT_EQ(step.chunks_in_first_message, 0);
  EXPECT_THAT(step.message_sizes, SizeIs(1 + 4));
  EXPECT_THAT(step.message_sizes, Each(Le(size_t{wire::kMessageBytes})));
  EXPECT_EQ(step.gradients, gradients_);
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(GrpcByteStreamTest, LargestMessagesAreTaken) {
  options_.message_bytes = wire::kMaxMessageBytes;
  const std::vector<int64_t> sizes = {3'000'000};
  MakeTensors(sizes);
  RawServer server(address_, [&](RawServer::Call* call) {
    Reply(call, ReceiveStep(call, sizes).value_or(ReceivedStep()));
    call->Finish(absl::OkStatus());
  });
  ASSERT_TRUE(Step(Connect().get()).ok());
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(GrpcByteStreamTest, ChannelArgumentsOfTheCallerHoldOverTheLibrarys) {
  options_.channel_arguments = [](grpc::ChannelArguments* arguments) {
    arguments->SetMaxReceiveMessageSize(int{wire::kMessageBytes} / 2);
  };
  const std::vector<int64_t> sizes = {wire::kChunkElements};
  MakeTensors(sizes);
  RawServer server(address_, [&](RawServer::Call* call) {
    Reply(call, ReceiveStep(call, sizes).value_or(ReceivedStep()));
    call->Finish(absl::OkStatus());
  });
  EXPECT_THAT(Step(Connect().get()).status().message(), HasSubstr("larger than max"));
}

TEST_F(GrpcByteStreamTest, SmallStepsAreOneMessageEachOnOneCall) {
  const std::vector<int64_t> sizes = {32, 16, 16, 1};
  MakeTensors(sizes);
  int calls = 0;
  std::vector<ReceivedStep> steps;
  {
    RawServer server(address_, [&](RawServer::Call* call) {
      ++calls;
      while (std::optional<ReceivedStep> step = ReceiveStep(call, sizes)) {
        steps.push_back(*step);
        Reply(call, *step);
      }
      call->Finish(absl::OkStatus());
    });
    const std::shared_ptr<Connection> connection = Connect();
    ASSERT_TRUE(Step(connection.get()).ok());
    ASSERT_TRUE(Step(connection.get()).ok());
  }  // the server's thread, which wrote `steps`, has ended
  EXPECT_EQ(calls, 1);
  ASSERT_EQ(steps.size(), 2);
  EXPECT_THAT(steps[1].message_sizes, SizeIs(1));
  EXPECT_NE(steps[0].header.request_id(), steps[1].header.request_id());
}

TEST_F(GrpcByteStreamTest, ReplyThatComesBeforeTheGradientIsReadDoesNotBlockTheUpload) {
  const std::vector<int64_t> sizes = {5'000'000};
  MakeTensors(sizes);
  absl::Notification received;
  RawServer server(address_, [&](RawServer::Call* call) {
    ReceivedStep known;
    known.gradients = gradients_;
    Reply(call, known);
    EXPECT_TRUE(ReceiveStep(call, sizes).has_value());
    received.Notify();
    call->Finish(absl::OkStatus());
  });
  const std::shared_ptr<Connection> connection = Connect();
  const absl::StatusOr<v1::StepResult> result = Step(connection.get());
  received.WaitForNotification();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(parameters_, gradients_);
}

TEST_F(GrpcByteStreamTest, ErrorInTheMiddleOfAnUploadComesWithItsDetails) {
  MakeTensors({5'000'000});
  RawServer server(address_, [](RawServer::Call* call) {
    call->Read();
    call->Read();
    call->Finish(Error(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED, "superseded"));
  });
  const absl::Status status = Step(Connect().get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "superseded");
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_SUPERSEDED);
}

TEST_F(GrpcByteStreamTest, ServerThatEndsTheCallWithoutAReplyIsUnavailable) {
  MakeTensors({10});
  RawServer server(address_, [](RawServer::Call* call) { call->Finish(absl::OkStatus()); });
  EXPECT_EQ(Step(Connect().get()).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(GrpcByteStreamTest, ServerThatDiesInTheMiddleOfAnUploadIsUnavailable) {
  MakeTensors({5'000'000});
  std::unique_ptr<RawServer> server;
  std::thread killer;
  absl::Notification reading;
  server = std::make_unique<RawServer>(address_, [&](RawServer::Call* call) {
    call->Read();
    reading.Notify();
    while (call->Read().has_value()) {
    }
  });
  killer = std::thread([&] {
    reading.WaitForNotification();
    server.reset();
  });
  const absl::Status status = Step(Connect().get()).status();
  killer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

TEST_F(GrpcByteStreamTest, UploadThatTheServerDoesNotReadEndsAtItsTimeout) {
  MakeTensors({5'000'000});
  options_.step_timeout = absl::Milliseconds(50);
  absl::Notification done;
  RawServer server(address_, [&](RawServer::Call* call) {
    call->Read();
    done.WaitForNotification();
    call->Finish(absl::OkStatus());
  });
  const absl::Status status = Step(Connect().get()).status();
  done.Notify();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no answer within 50ms"));
}

TEST_F(GrpcByteStreamTest, ReplyThatDoesNotComeEndsAtItsTimeout) {
  MakeTensors({10});
  options_.step_timeout = absl::Milliseconds(50);
  absl::Notification done;
  RawServer server(address_, [&](RawServer::Call* call) {
    call->Read();
    done.WaitForNotification();
    call->Finish(absl::OkStatus());
  });
  const absl::Status status = Step(Connect().get()).status();
  done.Notify();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(GrpcByteStreamTest, StepWhoseReplyDoesNotComeEndsWhereItIsInterrupted) {
  MakeTensors({1000});
  absl::Notification ended;
  RawServer server(address_, [&](RawServer::Call* call) {
    EXPECT_TRUE(ReceiveStep(call, {1000}).has_value());
    ended.WaitForNotification();
    call->Finish(absl::OkStatus());
  });
  int asked = 0;
  options_.interrupted = [&asked] { return ++asked == 2; };
  const absl::Status status = Step(Connect().get()).status();
  ended.Notify();
  EXPECT_EQ(status, absl::CancelledError("interrupted"));
  EXPECT_EQ(asked, 2);
}

TEST_F(GrpcByteStreamTest, NobodyThereIsUnavailableAndSaysSo) {
  MakeTensors({10});
  options_.connect_timeout = absl::Milliseconds(350);
  const absl::Status status = Step(Connect().get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(StartsWith(absl::StrCat("no connection within 350ms: ", address_, ": ")),
                    HasSubstr("No such file or directory")));
}

TEST_F(GrpcByteStreamTest, StepsGoOnWithAServerThatCameAndWentAndCame) {
  const std::vector<int64_t> sizes = {10};
  MakeTensors(sizes);
  options_.retry.max_attempts = 1000;
  std::unique_ptr<RawServer> server;
  const RawServer::Handler handler = [&](RawServer::Call* call) {
    if (call->method() == "/adamant.v1.OptimizerService/GetStepResult") {
      call->Read();
      v1::GetStepResultResponse response;
      response.set_state(v1::STEP_STATE_UNKNOWN);
      const grpc::Slice slice(response.SerializeAsString());
      call->Write(grpc::ByteBuffer(&slice, 1));
      call->Finish(absl::OkStatus());
      return;
    }
    while (std::optional<ReceivedStep> step = ReceiveStep(call, sizes)) Reply(call, *step);
    call->Finish(absl::OkStatus());
  };
  // Each comes up when it has been found not to be there.
  options_.on_wait = [&](const absl::Status&) {
    if (server == nullptr) server = std::make_unique<RawServer>(address_, handler);
  };
  const std::shared_ptr<Connection> connection = Connect();
  for (int i = 0; i < 3; ++i) {
    const absl::StatusOr<v1::StepResult> result = Step(connection.get());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(parameters_, gradients_);
    server.reset();
  }
}

TEST_F(GrpcByteStreamTest, SlicesOfACallThatWasCancelledInTheMiddleAreLetGoOf) {
  absl::Notification done;
  RawServer server(address_, [&](RawServer::Call* call) {
    call->Read();
    done.WaitForNotification();
    call->Finish(absl::OkStatus());
  });
  const std::vector<char> memory(1 << 20, 'x');
  std::atomic<int> referred = 0;
  const auto message = [&] {
    ++referred;
    const grpc::Slice slice(
        const_cast<char*>(memory.data()), memory.size(), [](void* count) { --*static_cast<std::atomic<int>*>(count); },
        &referred);
    return grpc::ByteBuffer(&slice, 1);
  };
  {
    const std::unique_ptr<Stub> stub = MakeGrpcStub(address_, options_);
    const std::unique_ptr<ByteStream> stream = stub->OpenStep();
    stream->SetTimeout(absl::Milliseconds(50));
    // The server reads one message; the window and the socket take some more.
    absl::Status status;
    while (status.ok()) status = stream->Write(message());
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);

    stream->Close();
    stream->DriveUntil([&] { return referred == 0; });
  }
  EXPECT_EQ(referred, 0);
  done.Notify();
}

TEST_F(GrpcByteStreamTest, EndOfACallBetweenTwoRequestsIsNoticed) {
  const std::vector<int64_t> sizes = {10};
  MakeTensors(sizes);
  RawServer server(address_, [&](RawServer::Call* call) {
    Reply(call, ReceiveStep(call, sizes).value_or(ReceivedStep()));
    call->Finish(Error(absl::StatusCode::kUnavailable, v1::ERROR_REASON_DRAINING, "draining"));
  });
  const std::unique_ptr<Stub> stub = MakeGrpcStub(address_, options_);
  const std::unique_ptr<ByteStream> stream = stub->OpenStep();
  v1::StepHeader header;
  wire::TensorMessageBuilder builder(nullptr);
  builder.SetHeader(header);
  builder.SetLast();
  ASSERT_TRUE(stream->Write(builder.Finish()).ok());
  ASSERT_TRUE(stream->Read()->has_value());
  stream->DriveUntil([&] { return !stream->alive(); });
  EXPECT_EQ(GetErrorDetail(stream->Read().status()).reason(), v1::ERROR_REASON_DRAINING);
}

}  // namespace
}  // namespace adamant
