// What is repeated, and what is asked before it is.
#include "client/src/retrying_connection.h"

#include <google/protobuf/message.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "adamant/error.h"
#include "client/src/formats.h"
#include "client/src/grpc_stub.h"
#include "client/src/tensor_transfer.h"
#include "proto/wire/tensor_message.h"

namespace adamant {
namespace {

std::string RandomRequestId() {
  thread_local absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

// How often a target is tried to which there is no connection.
constexpr absl::Duration kConnectInterval = absl::Milliseconds(300);

// The end of a call that was interrupted while it waited because of `reason`.
absl::Status Interrupted(const absl::Status& reason) {
  return absl::CancelledError(absl::StrCat("interrupted: ", reason.message()));
}

// `stub` outlives the options.
ClientOptions WithRealOnes(ClientOptions options, Stub* stub) {
  const absl::Duration piece = options.interrupted ? kInterruptInterval : absl::InfiniteDuration();
  if (!options.interrupted) options.interrupted = [] { return false; };
  if (!options.sleep) {
    options.sleep = [stub, piece, interrupted = options.interrupted](absl::Duration wait) {
      for (; wait > absl::ZeroDuration() && !interrupted(); wait -= piece) {
        if (stub->AwaitDisconnect(std::min(wait, piece))) return;
      }
    };
  }
  if (!options.now) {
    options.now = [] { return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch()); };
  }
  if (!options.request_id) options.request_id = RandomRequestId;
  return options;
}

absl::Status Validate(const std::string& target, const ClientOptions& options) {
  const RetryPolicy& retry = options.retry;
  const auto check = [](bool holds, absl::string_view name) {
    return holds ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrCat(name, " is out of its range"));
  };
  absl::Status status;
  status.Update(check(!target.empty(), "target"));
  status.Update(check(retry.max_attempts >= 1, "retry.max_attempts"));
  status.Update(check(retry.total_timeout > absl::ZeroDuration(), "retry.total_timeout"));
  status.Update(check(retry.initial_backoff >= absl::ZeroDuration(), "retry.initial_backoff"));
  status.Update(check(retry.max_backoff >= retry.initial_backoff, "retry.max_backoff"));
  status.Update(check(retry.multiplier >= 1, "retry.multiplier"));
  status.Update(check(retry.jitter >= 0 && retry.jitter <= 1, "retry.jitter"));
  status.Update(check(options.connect_timeout > absl::ZeroDuration(), "connect_timeout"));
  status.Update(check(options.unary_timeout > absl::ZeroDuration(), "unary_timeout"));
  status.Update(check(options.step_timeout > absl::ZeroDuration(), "step_timeout"));
  status.Update(check(options.transfer_timeout > absl::ZeroDuration(), "transfer_timeout"));
  status.Update(
      check(options.message_bytes >= 1 << 10 && options.message_bytes <= wire::kMaxMessageBytes, "message_bytes"));
  return status;
}

// Those of which there is a span.
std::vector<int32_t> IndicesOf(MutableTensors tensors) {
  std::vector<int32_t> indices;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].empty()) indices.push_back(static_cast<int32_t>(i));
  }
  return indices;
}

// Memory of the caller's that messages refer to.
class Loan {
 public:
  Loan()
      : returned_(std::make_shared<std::atomic<bool>>(false)),
        hold_(returned_.get(),
              [returned = returned_](const void*) { returned->store(true, std::memory_order_release); }) {}

  // For the one use that there is of it: gone from here afterwards.
  std::shared_ptr<const void> TakeHold() { return std::move(hold_); }
  // Whether gRPC has let go of all messages made with the hold.
  bool returned() const { return returned_->load(std::memory_order_acquire); }

 private:
  std::shared_ptr<std::atomic<bool>> returned_;
  std::shared_ptr<const void> hold_;
};

// Sends, waits for what `receive` makes of the reply, and in any case until gRPC has let go of the sources.
absl::Status SendAndReceive(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                            absl::Span<const RowsGradient> rows, v1::Dtype dtype, int64_t message_bytes,
                            const ElementReader& read, ByteStream* stream, absl::FunctionRef<absl::Status()> receive,
                            const Progress& progress) {
  Loan loan;
  absl::Status status =
      SendTensors(header, sources, rows, dtype, message_bytes, loan.TakeHold(), stream, progress, read);
  if (status.ok()) status = receive();
  if (!status.ok()) stream->Close();
  stream->DriveUntil([&] { return loan.returned(); });
  return status;
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

// An error in what the server sent is not the caller's.
absl::Status Misunderstood(const absl::Status& status) {
  return absl::InternalError(absl::StrCat("the server's reply could not be understood: ", status.message()));
}

absl::Status ParseHeader(const wire::TensorMessage& message, google::protobuf::Message* header) {
  absl::Status status = message.ParseHeader(header);
  // What a newer server has to say besides is no fault.
  const bool understood = status.ok() || GetErrorDetail(status).reason() == v1::ERROR_REASON_UNKNOWN_FIELD;
  return understood ? absl::OkStatus() : Misunderstood(status);
}

absl::Status ReceiveStep(const StepCall& call, ByteStream* stream, v1::StepResult* result) {
  const ReadCall::Target target = {v1::SLOT_PARAMETER, call.parameters};
  TensorReceiver receiver(target, call.rows);
  const int64_t sent = call.progress ? CountElements(call.gradients) : 0;
  const int64_t expected = call.progress ? CountElements(call.parameters) : 0;
  while (true) {
    absl::StatusOr<std::optional<grpc::ByteBuffer>> buffer = stream->Read();
    if (!buffer.ok()) return buffer.status();
    if (!buffer->has_value()) return absl::UnavailableError("the server ended the call before it answered");
    absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(**buffer);
    if (!message.ok()) return Misunderstood(message.status());
    const int64_t taken = receiver.taken();
    absl::Status status = receiver.Take(&*message);
    if (!status.ok()) return status;
    if (call.progress && receiver.taken() > taken) call.progress(sent + receiver.taken(), sent + expected);
    if (!message->has_header()) continue;
    status = ParseHeader(*message, result);
    return status.ok() ? receiver.Finish(/*without_rows=*/call.header.omit_parameters() || result->replayed()) : status;
  }
}

absl::Status ParseAll(grpc::ByteBuffer* buffer, google::protobuf::Message* message) {
  grpc::ProtoBufferReader reader(buffer);
  if (!message->ParseFromZeroCopyStream(&reader)) return absl::InternalError("the server's reply is no message");
  return absl::OkStatus();
}

absl::Status ReceiveWritten(ByteStream* stream, v1::WriteTensorsResponse* response) {
  absl::Status status = stream->WritesDone();
  if (!status.ok()) return status;
  absl::StatusOr<std::optional<grpc::ByteBuffer>> buffer = stream->Read();
  if (!buffer.ok()) return buffer.status();
  if (!buffer->has_value()) return absl::InternalError("the server did not answer");
  status = ParseAll(&**buffer, response);
  return status.ok() ? stream->Read().status() : status;
}

using Event = v1::WatchParameterSetResponse;

class Watching : public EventStream {
 public:
  explicit Watching(std::unique_ptr<ByteStream> stream) : stream_(std::move(stream)) {}

  // Sends the request, and receives the first event, which Next returns then.
  absl::Status Begin(const v1::WatchParameterSetRequest& request) {
    absl::Status status = stream_->Write(Serialize(request));
    if (status.ok()) status = stream_->WritesDone();
    if (!status.ok()) return status;
    absl::StatusOr<std::optional<Event>> event = Receive();
    if (!event.ok()) return event.status();
    if (!event->has_value()) return absl::InternalError("the server did not answer");
    first_ = *std::move(event);
    stream_->SetTimeout(absl::InfiniteDuration());
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<Event>> Next() override {
    if (first_.has_value()) return std::exchange(first_, std::nullopt);
    return Receive();
  }

  void Cancel() override { stream_->Cancel(); }

 private:
  absl::StatusOr<std::optional<Event>> Receive() {
    absl::StatusOr<std::optional<grpc::ByteBuffer>> buffer = stream_->Read();
    if (!buffer.ok()) return buffer.status();
    if (!buffer->has_value()) return std::optional<Event>();
    std::optional<Event> event = Event();
    const absl::Status status = ParseAll(&**buffer, &*event);
    if (!status.ok()) return status;
    return event;
  }

  const std::unique_ptr<ByteStream> stream_;
  std::optional<Event> first_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Connection>> MakeConnection(const std::string& target, const ClientOptions& options) {
  absl::Status status = Validate(target, options);
  if (!status.ok()) return status;
  return std::make_shared<RetryingConnection>(MakeGrpcStub(target, options), options);
}

RetryingConnection::RetryingConnection(std::unique_ptr<Stub> stub, const ClientOptions& options)
    : stub_(std::move(stub)), options_(WithRealOnes(options, stub_.get())) {}

template <typename Attempt>
auto RetryingConnection::Repeat(Attempt attempt) -> decltype(attempt(std::declval<const Attempts&>())) {
  Attempts attempts(&options_);
  while (true) {
    const absl::Status no_connection = AwaitConnection(attempts);
    if (!no_connection.ok()) return no_connection;
    auto result = attempt(attempts);
    if (result.ok()) return result;
    const absl::Status final = attempts.Next(result.status());
    if (!final.ok()) return final;
    if (options_.interrupted()) return Interrupted(result.status());
  }
}

absl::Status RetryingConnection::AwaitConnection(const Attempts& attempts) {
  const absl::Duration limit = attempts.Timeout(options_.connect_timeout);
  const absl::Duration begin = options_.now();
  absl::Duration left = limit;
  bool told = false;
  while (true) {
    absl::Status status = stub_->Connect(std::min(left, kConnectInterval));
    if (status.ok()) return status;
    if (options_.on_wait && !std::exchange(told, true)) options_.on_wait(status);
    if (options_.interrupted()) return Interrupted(status);
    left = limit - (options_.now() - begin);
    if (left <= absl::ZeroDuration()) {
      return absl::Status(status.code(), absl::StrCat("no connection within ",
                                                      absl::FormatDuration(absl::Ceil(limit, absl::Milliseconds(1))),
                                                      ": ", status.message()));
    }
  }
}

absl::StatusOr<v1::CreateParameterSetResponse> RetryingConnection::CreateParameterSet(
    const v1::CreateParameterSetRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->CreateParameterSet(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::GetParameterSetResponse> RetryingConnection::GetParameterSet(
    const v1::GetParameterSetRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->GetParameterSet(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::ListParameterSetsResponse> RetryingConnection::ListParameterSets(
    const v1::ListParameterSetsRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->ListParameterSets(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::ListTensorsResponse> RetryingConnection::ListTensors(const v1::ListTensorsRequest& request) {
  return Repeat(
      [&](const Attempts& attempts) { return stub_->ListTensors(request, attempts.Timeout(options_.unary_timeout)); });
}

absl::StatusOr<v1::DeleteParameterSetResponse> RetryingConnection::DeleteParameterSet(
    const v1::DeleteParameterSetRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    absl::StatusOr<v1::DeleteParameterSetResponse> response =
        stub_->DeleteParameterSet(request, attempts.Timeout(options_.unary_timeout));
    if (absl::IsNotFound(response.status()) && attempts.number() > 1) response = v1::DeleteParameterSetResponse();
    return response;
  });
}

absl::StatusOr<v1::AddTensorsResponse> RetryingConnection::AddTensors(const v1::AddTensorsRequest& request) {
  return Repeat(
      [&](const Attempts& attempts) { return stub_->AddTensors(request, attempts.Timeout(options_.unary_timeout)); });
}

absl::StatusOr<v1::UpdateParameterGroupResponse> RetryingConnection::UpdateParameterGroup(
    const v1::UpdateParameterGroupRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->UpdateParameterGroup(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::UpdateParameterSetResponse> RetryingConnection::UpdateParameterSet(
    const v1::UpdateParameterSetRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->UpdateParameterSet(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::CheckpointResponse> RetryingConnection::Checkpoint(const v1::CheckpointRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->Checkpoint(request, attempts.Timeout(options_.transfer_timeout));
  });
}

absl::StatusOr<v1::ListCheckpointsResponse> RetryingConnection::ListCheckpoints(
    const v1::ListCheckpointsRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->ListCheckpoints(request, attempts.Timeout(options_.transfer_timeout));
  });
}

absl::StatusOr<v1::RestoreCheckpointResponse> RetryingConnection::RestoreCheckpoint(
    const v1::RestoreCheckpointRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->RestoreCheckpoint(request, attempts.Timeout(options_.transfer_timeout));
  });
}

absl::StatusOr<v1::ForkResponse> RetryingConnection::Fork(const v1::ForkRequest& request) {
  return Repeat(
      [&](const Attempts& attempts) { return stub_->Fork(request, attempts.Timeout(options_.transfer_timeout)); });
}

absl::StatusOr<v1::GetStepResultResponse> RetryingConnection::GetStepResult(const v1::GetStepResultRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->GetStepResult(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::GetServerInfoResponse> RetryingConnection::GetServerInfo(const v1::GetServerInfoRequest& request) {
  return Repeat([&](const Attempts& attempts) {
    return stub_->GetServerInfo(request, attempts.Timeout(options_.unary_timeout));
  });
}

absl::StatusOr<v1::StepResult> RetryingConnection::Step(const StepCall& call) {
  v1::StepHeader header = call.header;
  if (header.request_id().empty()) header.set_request_id(options_.request_id());
  return Repeat([&](const Attempts& attempts) { return TryStep(call, header, attempts); });
}

absl::StatusOr<v1::StepResult> RetryingConnection::TryStep(const StepCall& call, const v1::StepHeader& header,
                                                           const Attempts& attempts) {
  if (attempts.number() == 1) return Exchange(call, header, attempts);
  // The reply may be all that was lost. Asking costs less than a gradient.
  v1::GetStepResultRequest request;
  request.set_set(header.set());
  if (header.has_incarnation()) request.set_incarnation(header.incarnation());
  request.set_request_id(header.request_id());
  absl::StatusOr<v1::GetStepResultResponse> response =
      stub_->GetStepResult(request, attempts.Timeout(options_.unary_timeout));
  if (!response.ok()) return response.status();
  if (response->state() == v1::STEP_STATE_COMMITTED) return Fetch(call, response->result(), attempts);
  // Never applied, or still arriving: then this attempt ends that one.
  v1::StepHeader again = header;
  again.set_attempt(attempts.number());
  if (response->state() != v1::STEP_STATE_ACCUMULATED) return Exchange(call, again, attempts);
  // The gradient is there: this attempt is to hear what becomes of it. Should its round fail meanwhile, so does this.
  StepCall without_gradient = call;
  without_gradient.gradients = {};
  return Exchange(without_gradient, again, attempts);
}

absl::StatusOr<v1::StepResult> RetryingConnection::Exchange(const StepCall& call, const v1::StepHeader& header,
                                                            const Attempts& attempts) {
  std::unique_ptr<ByteStream> stream = TakeIdleStepStream();
  if (stream != nullptr) {
    absl::StatusOr<v1::StepResult> result = ExchangeOn(std::move(stream), call, header, attempts);
    // A server that ends an idle call says so too late for a step that is on its way. What it waited for is this step.
    if (GetErrorDetail(result.status()).reason() != v1::ERROR_REASON_STALLED) return result;
  }
  return ExchangeOn(stub_->OpenStep(), call, header, attempts);
}

absl::StatusOr<v1::StepResult> RetryingConnection::ExchangeOn(std::unique_ptr<ByteStream> stream, const StepCall& call,
                                                              const v1::StepHeader& header, const Attempts& attempts) {
  stream->SetTimeout(attempts.Timeout(options_.step_timeout + call.round_timeout));
  const WriteCall::Source gradients = {v1::SLOT_UNSPECIFIED, call.gradients};
  v1::StepResult result;
  Progress send_progress;
  if (call.progress) {
    send_progress = [&call, expected = CountElements(call.parameters)](int64_t done, int64_t total) {
      call.progress(done, total + expected);
    };
  }
  const absl::Status status = SendAndReceive(
      header, {&gradients, 1}, call.rows, call.gradient_dtype, options_.message_bytes, call.read, stream.get(),
      [&] { return ReceiveStep(call, stream.get(), &result); }, send_progress);
  if (!status.ok()) return status;
  KeepStepStream(std::move(stream));
  // The answer to a request that was applied before has no rows.
  if (result.replayed() && !call.rows.empty()) return Fetch(call, std::move(result), attempts);
  return result;
}

absl::StatusOr<v1::StepResult> RetryingConnection::Fetch(const StepCall& call, v1::StepResult result,
                                                         const Attempts& attempts) {
  result.set_replayed(true);
  if (call.parameters.empty()) return result;
  ReadCall read;
  read.request.set_set(call.header.set());
  read.request.set_incarnation(result.incarnation());
  read.targets = {{v1::SLOT_PARAMETER, call.parameters}};
  if (!call.header.tensors().empty()) {
    *read.request.mutable_tensors() = call.header.tensors();
  } else {
    // Of frozen tensors nothing comes.
    const std::vector<int32_t> brought = IndicesOf(call.parameters);
    if (brought.size() < call.parameters.size()) {
      read.request.mutable_tensors()->Add(brought.begin(), brought.end());
    }
  }
  absl::StatusOr<v1::ReadHeader> header = TryRead(read, attempts);
  if (!header.ok()) return header.status();
  result.set_parameters_step(header->step());
  // A read comes in fp32. That the reply was lost must not show in its bits.
  int64_t overflowed = 0;
  for (const absl::Span<float> tensor : call.parameters) overflowed += Round(call.header.reply_dtype(), tensor);
  result.set_overflowed(overflowed);
  return result;
}

absl::StatusOr<v1::WriteTensorsResponse> RetryingConnection::Write(const WriteCall& call) {
  v1::WriteHeader header = call.header;
  if (header.request_id().empty()) header.set_request_id(options_.request_id());
  return Repeat([&](const Attempts& attempts) { return TryWrite(call, header, attempts); });
}

absl::StatusOr<v1::WriteTensorsResponse> RetryingConnection::TryWrite(const WriteCall& call,
                                                                      const v1::WriteHeader& header,
                                                                      const Attempts& attempts) {
  const std::unique_ptr<ByteStream> stream = stub_->OpenWriteTensors();
  stream->SetTimeout(attempts.Timeout(options_.transfer_timeout));
  v1::WriteTensorsResponse response;
  const absl::Status status = SendAndReceive(
      header, call.sources, {}, v1::DTYPE_FLOAT32, options_.message_bytes, call.read, stream.get(),
      [&] { return ReceiveWritten(stream.get(), &response); }, call.progress);
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::ReadHeader> RetryingConnection::Read(const ReadCall& call) {
  return Repeat([&](const Attempts& attempts) { return TryRead(call, attempts); });
}

absl::StatusOr<v1::ReadHeader> RetryingConnection::TryRead(const ReadCall& call, const Attempts& attempts) {
  v1::ReadTensorsRequest request = call.request;
  for (const ReadCall::Target& target : call.targets) request.add_slots(target.slot);
  const std::unique_ptr<ByteStream> stream = stub_->OpenReadTensors();
  stream->SetTimeout(attempts.Timeout(options_.transfer_timeout));
  absl::Status status = stream->Write(Serialize(request));
  if (!status.ok()) return status;
  status = stream->WritesDone();
  if (!status.ok()) return status;

  int64_t total = 0;
  for (const ReadCall::Target& target : call.targets) total += CountElements(target.tensors);
  TensorReceiver receiver(call.targets);
  std::optional<v1::ReadHeader> header;
  while (true) {
    absl::StatusOr<std::optional<grpc::ByteBuffer>> buffer = stream->Read();
    if (!buffer.ok()) return buffer.status();
    if (!buffer->has_value()) break;
    absl::StatusOr<wire::TensorMessage> message = wire::TensorMessage::Decode(**buffer);
    if (!message.ok()) return Misunderstood(message.status());
    if (message->has_header()) {
      status = ParseHeader(*message, &header.emplace());
      if (!status.ok()) return status;
    }
    const int64_t taken = receiver.taken();
    status = receiver.Take(&*message);
    if (!status.ok()) return status;
    if (call.progress && receiver.taken() > taken) call.progress(receiver.taken(), total);
  }
  if (!header.has_value()) return absl::InternalError("the server sent no header");
  if (header->not_modified()) return *header;
  status = receiver.Finish();
  if (!status.ok()) return status;
  return *header;
}

absl::StatusOr<std::unique_ptr<EventStream>> RetryingConnection::Watch(const v1::WatchParameterSetRequest& request) {
  return Repeat([&](const Attempts& attempts) { return TryWatch(request, attempts); });
}

absl::StatusOr<std::unique_ptr<EventStream>> RetryingConnection::TryWatch(const v1::WatchParameterSetRequest& request,
                                                                          const Attempts& attempts) {
  std::unique_ptr<ByteStream> stream = stub_->OpenWatchParameterSet();
  stream->SetTimeout(attempts.Timeout(options_.unary_timeout));
  auto watching = std::make_unique<Watching>(std::move(stream));
  const absl::Status status = watching->Begin(request);
  if (!status.ok()) return status;
  return watching;
}

std::unique_ptr<ByteStream> RetryingConnection::TakeIdleStepStream() {
  while (true) {
    std::unique_ptr<ByteStream> stream;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (idle_.empty()) return nullptr;
      stream = std::move(idle_.back());
      idle_.pop_back();
    }
    if (stream->alive()) return stream;
  }
}

void RetryingConnection::KeepStepStream(std::unique_ptr<ByteStream> stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(stream));
}

}  // namespace adamant
