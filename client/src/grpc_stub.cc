// Unary calls through the generated stub; streams of tensors as raw messages, past protobuf.
#include "client/src/grpc_stub.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <memory>

#include "adamant/v1/service.grpc.pb.h"
#include "client/src/grpc_byte_stream.h"
#include "proto/wire/status.h"

namespace adamant {
namespace {

class GrpcStub : public Stub {
 public:
  explicit GrpcStub(const std::shared_ptr<grpc::Channel>& channel)
      : service_(v1::OptimizerService::NewStub(channel)), generic_(channel) {}

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

 private:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::OptimizerService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                                   Response*),
                                const Request& request, absl::Duration timeout) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
    Response response;
    absl::Status status = wire::FromGrpcStatus((service_.get()->*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

  std::unique_ptr<ByteStream> Open(const char* method) { return std::make_unique<GrpcByteStream>(&generic_, method); }

  const std::unique_ptr<v1::OptimizerService::Stub> service_;
  grpc::GenericStub generic_;
};

}  // namespace

std::unique_ptr<Stub> MakeGrpcStub(std::shared_ptr<grpc::Channel> channel) {
  return std::make_unique<GrpcStub>(channel);
}

}  // namespace adamant
