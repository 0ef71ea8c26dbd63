#include "server/rpc/optimizer_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "proto/error/error.h"
#include "proto/wire/status.h"
#include "proto/wire/tensor_message.h"
#include "server/core/configuration.h"
#include "server/core/parameter_set.h"
#include "server/core/replay.h"
#include "server/core/schema.h"
#include "server/version.h"

namespace adamant::rpc {

OptimizerService::OptimizerService(Parts parts) : parts_(std::move(parts)) {}

absl::Status OptimizerService::CheckRequest(const google::protobuf::Message& request) const {
  if (absl::Status status = parts_.open_calls->CheckServing(); !status.ok()) return status;
  std::string field = wire::FindUnknownField(request);
  if (field.empty()) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNKNOWN_FIELD, "unknown field " + field, field);
}

template <typename Response, typename Call>
void OptimizerService::Answer(grpc::ServerUnaryReactor* reactor, const google::protobuf::Message& request,
                              Response* response, Call call) const {
  absl::Status status = CheckRequest(request);
  if (status.ok()) {
    absl::StatusOr<Response> result = call();
    status = result.status();
    if (result.ok()) *response = *std::move(result);
  }
  reactor->Finish(wire::ToGrpcStatus(status));
}

template <typename Response, typename Call>
grpc::ServerUnaryReactor* OptimizerService::Reply(grpc::CallbackServerContext* context,
                                                  const google::protobuf::Message& request, Response* response,
                                                  Call call) const {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Answer(reactor, request, response, std::move(call));
  return reactor;
}

grpc::ServerUnaryReactor* OptimizerService::CreateParameterSet(grpc::CallbackServerContext* context,
                                                               const v1::CreateParameterSetRequest* request,
                                                               v1::CreateParameterSetResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // Off gRPC's threads and off those that compute: a large set takes seconds to map.
  parts_.creation->Run(
      1, [=, this](int64_t) { Answer(reactor, *request, response, [&] { return parts_.registry->Create(*request); }); },
      [] {});
  return reactor;
}

grpc::ServerUnaryReactor* OptimizerService::GetParameterSet(grpc::CallbackServerContext* context,
                                                            const v1::GetParameterSetRequest* request,
                                                            v1::GetParameterSetResponse* response) {
  return Reply(context, *request, response, [&]() -> absl::StatusOr<v1::GetParameterSetResponse> {
    absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request->name());
    if (!set.ok()) return set.status();
    v1::GetParameterSetResponse result;
    *result.mutable_parameter_set() = (*set)->Describe();
    return result;
  });
}

grpc::ServerUnaryReactor* OptimizerService::ListParameterSets(grpc::CallbackServerContext* context,
                                                              const v1::ListParameterSetsRequest* request,
                                                              v1::ListParameterSetsResponse* response) {
  return Reply(context, *request, response, [&] { return parts_.registry->List(*request); });
}

grpc::ServerUnaryReactor* OptimizerService::ListTensors(grpc::CallbackServerContext* context,
                                                        const v1::ListTensorsRequest* request,
                                                        v1::ListTensorsResponse* response) {
  return Reply(context, *request, response, [&]() -> absl::StatusOr<v1::ListTensorsResponse> {
    absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request->name());
    if (!set.ok()) return set.status();
    return core::ListTensors(**set, *request);
  });
}

grpc::ServerUnaryReactor* OptimizerService::DeleteParameterSet(grpc::CallbackServerContext* context,
                                                               const v1::DeleteParameterSetRequest* request,
                                                               v1::DeleteParameterSetResponse* /*response*/) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (absl::Status status = CheckRequest(*request); !status.ok()) {
    reactor->Finish(wire::ToGrpcStatus(status));
    return reactor;
  }
  parts_.registry->Delete(*request, [reactor](absl::Status status) { reactor->Finish(wire::ToGrpcStatus(status)); });
  return reactor;
}

grpc::ServerUnaryReactor* OptimizerService::GetStepResult(grpc::CallbackServerContext* context,
                                                          const v1::GetStepResultRequest* request,
                                                          v1::GetStepResultResponse* response) {
  return Reply(context, *request, response, [&]() -> absl::StatusOr<v1::GetStepResultResponse> {
    absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request->set(), "set");
    if (!set.ok()) return set.status();
    return (*set)->FindStepResult(*request);
  });
}

grpc::ServerUnaryReactor* OptimizerService::GetServerInfo(grpc::CallbackServerContext* context,
                                                          const v1::GetServerInfoRequest* request,
                                                          v1::GetServerInfoResponse* response) {
  return Reply(context, *request, response, [&]() -> absl::StatusOr<v1::GetServerInfoResponse> {
    v1::GetServerInfoResponse info;
    info.set_version(kVersion);
    v1::ServerLimits* limits = info.mutable_limits();
    limits->set_max_tensors(core::kMaxTensors);
    limits->set_max_schema_bytes(core::kMaxSchemaBytes);
    limits->set_max_rank(core::kMaxRank);
    limits->set_max_groups(core::kMaxGroups);
    limits->set_max_set_name_bytes(core::kMaxSetNameBytes);
    limits->set_max_tensor_name_bytes(core::kMaxTensorNameBytes);
    limits->set_max_labels(core::kMaxLabels);
    limits->set_max_message_bytes(wire::kMaxMessageBytes);
    limits->set_max_streams(parts_.max_streams);
    limits->set_remembered_steps(core::kRememberedSteps);
    limits->set_max_chunks_per_message(wire::kMaxChunks);
    for (const core::Budget* budget : parts_.budgets) {
      v1::MemoryBudget* shown = info.add_budgets();
      shown->set_name(std::string(budget->name()));
      shown->set_capacity_bytes(budget->capacity());
      shown->set_used_bytes(budget->used());
    }
    v1::Device* device = info.add_devices();
    device->set_name("cpu");
    device->set_description(parts_.backend->Description());
    device->set_threads(parts_.compute->threads());
    return info;
  });
}

}  // namespace adamant::rpc
