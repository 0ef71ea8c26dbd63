// Unary calls through the generated stub; streams of tensors as raw messages, past protobuf.
#include "client/src/grpc_stub.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "adamant/v1/service.grpc.pb.h"
#include "client/src/channel.h"
#include "client/src/grpc_byte_stream.h"
#include "proto/wire/status.h"

namespace adamant {
namespace {

// More than a call takes that fails where it is made.
constexpr absl::Duration kReasonTimeout = absl::Seconds(1);

std::chrono::system_clock::time_point DeadlineIn(absl::Duration timeout) {
  return std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout);
}

// A channel, and what makes calls on it.
struct Line {
  explicit Line(std::shared_ptr<grpc::Channel> to)
      : channel(std::move(to)), service(v1::OptimizerService::NewStub(channel)), generic(channel) {}

  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::OptimizerService::Stub> service;
  grpc::GenericStub generic;
};

class GrpcStub : public Stub {
 public:
  GrpcStub(const std::string& target, const ClientOptions& options)
      : target_(target),
        arguments_(MakeChannelArguments(target, options)),
        interrupted_(options.interrupted),
        line_(MakeLine()) {}

  // Waiting for the channel is also what makes it move: between calls nobody else polls its sockets, but for a timer of
  // gRPC's every five seconds.
  absl::Status Connect(absl::Duration timeout) override {
    const std::shared_ptr<Line> line = CurrentLine();
    const auto deadline = DeadlineIn(timeout);
    grpc_connectivity_state state;
    while ((state = line->channel->GetState(/*try_to_connect=*/true)) != GRPC_CHANNEL_READY) {
      if (!line->channel->WaitForStateChange(state, deadline)) break;
    }
    if (state == GRPC_CHANNEL_READY) return absl::OkStatus();
    if (state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
      return absl::UnavailableError(absl::StrCat(target_, ": nobody has answered yet"));
    }
    // The channel keeps the reason to itself, and fails calls with it.
    const absl::Status status =
        CallOn(line.get(), &v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest(), kReasonTimeout)
            .status();
    if (!absl::IsUnavailable(status)) return absl::OkStatus();
    Replace(line);
    return absl::UnavailableError(absl::StrCat(target_, ": ", status.message()));
  }

  bool AwaitDisconnect(absl::Duration timeout) override {
    return CurrentLine()->channel->WaitForStateChange(GRPC_CHANNEL_READY, DeadlineIn(timeout));
  }

  absl::StatusOr<v1::CreateParameterSetResponse> CreateParameterSet(const v1::CreateParameterSetRequest& request,
                                                                    absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::CreateParameterSet, request, timeout);
  }
  absl::StatusOr<v1::GetParameterSetResponse> GetParameterSet(const v1::GetParameterSetRequest& request,
                                                              absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::GetParameterSet, request, timeout);
  }
  absl::StatusOr<v1::ListParameterSetsResponse> ListParameterSets(const v1::ListParameterSetsRequest& request,
                                                                  absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::ListParameterSets, request, timeout);
  }
  absl::StatusOr<v1::ListTensorsResponse> ListTensors(const v1::ListTensorsRequest& request,
                                                      absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::ListTensors, request, timeout);
  }
  absl::StatusOr<v1::DeleteParameterSetResponse> DeleteParameterSet(const v1::DeleteParameterSetRequest& request,
                                                                    absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::DeleteParameterSet, request, timeout);
  }
  absl::StatusOr<v1::AddTensorsResponse> AddTensors(const v1::AddTensorsRequest& request,
                                                    absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::AddTensors, request, timeout);
  }
  absl::StatusOr<v1::UpdateParameterGroupResponse> UpdateParameterGroup(const v1::UpdateParameterGroupRequest& request,
                                                                        absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request, timeout);
  }
  absl::StatusOr<v1::UpdateParameterSetResponse> UpdateParameterSet(const v1::UpdateParameterSetRequest& request,
                                                                    absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::UpdateParameterSet, request, timeout);
  }
  absl::StatusOr<v1::CheckpointResponse> Checkpoint(const v1::CheckpointRequest& request,
                                                    absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::Checkpoint, request, timeout);
  }
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const v1::ListCheckpointsRequest& request,
                                                              absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::ListCheckpoints, request, timeout);
  }
  absl::StatusOr<v1::RestoreCheckpointResponse> RestoreCheckpoint(const v1::RestoreCheckpointRequest& request,
                                                                  absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::RestoreCheckpoint, request, timeout);
  }
  absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request, absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::Fork, request, timeout);
  }
  absl::StatusOr<v1::GetStepResultResponse> GetStepResult(const v1::GetStepResultRequest& request,
                                                          absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::GetStepResult, request, timeout);
  }
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const v1::GetServerInfoRequest& request,
                                                          absl::Duration timeout) override {
    return Call(&v1::OptimizerService::Stub::GetServerInfo, request, timeout);
  }

  std::unique_ptr<ByteStream> OpenStep() override { return Open("/adamant.v1.OptimizerService/Step"); }
  std::unique_ptr<ByteStream> OpenWriteTensors() override { return Open("/adamant.v1.OptimizerService/WriteTensors"); }
  std::unique_ptr<ByteStream> OpenReadTensors() override { return Open("/adamant.v1.OptimizerService/ReadTensors"); }
  std::unique_ptr<ByteStream> OpenWatchParameterSet() override {
    return Open("/adamant.v1.OptimizerService/WatchParameterSet");
  }

 private:
  template <typename Request, typename Response>
  using Method = grpc::Status (v1::OptimizerService::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(Method<Request, Response> method, const Request& request, absl::Duration timeout) {
    return CallOn(CurrentLine().get(), method, request, timeout);
  }

  template <typename Request, typename Response>
  static absl::StatusOr<Response> CallOn(Line* line, Method<Request, Response> method, const Request& request,
                                         absl::Duration timeout) {
    grpc::ClientContext context;
    context.set_deadline(DeadlineIn(timeout));
    Response response;
    absl::Status status = wire::FromGrpcStatus((line->service.get()->*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  std::unique_ptr<ByteStream> Open(const char* method) {
    return std::make_unique<GrpcByteStream>(&CurrentLine()->generic, method, interrupted_);
  }

  std::shared_ptr<Line> MakeLine() const {
    return std::make_shared<Line>(grpc::CreateCustomChannel(target_, grpc::InsecureChannelCredentials(), arguments_));
  }

  std::shared_ptr<Line> CurrentLine() {
    std::lock_guard<std::mutex> lock(mutex_);
    return line_;
  }

  // A channel that has failed waits, for seconds to minutes, before it resolves a name or connects again, and gRPC has
  // no way to cut short the first of these. A new channel begins at once.
  void Replace(const std::shared_ptr<Line>& failed) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (line_ == failed) line_ = MakeLine();
  }

  const std::string target_;
  const grpc::ChannelArguments arguments_;
  const std::function<bool()> interrupted_;

  std::mutex mutex_;
  // Guarded by `mutex_`. Calls that are under way keep their channel.
  std::shared_ptr<Line> line_;
};

}  // namespace

std::unique_ptr<Stub> MakeGrpcStub(const std::string& target, const ClientOptions& options) {
  return std::make_unique<GrpcStub>(target, options);
}

}  // namespace adamant
