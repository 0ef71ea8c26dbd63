#include "server/rpc/optimizer_service.h"

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "server/core/set/parameter_set.h"
#include "server/core/set/requests.h"
#include "server/core/spec/configuration.h"
#include "server/core/spec/schema.h"
#include "server/log.h"
#include "server/version.h"

namespace adamant::rpc {
namespace {

// The set that a request is about; empty if it names none.
template <typename Request>
std::string SetOf(const Request& request) {
  if constexpr (requires { request.spec(); }) {
    return request.spec().name();
  } else if constexpr (requires { request.set(); }) {
    return request.set();
  } else if constexpr (requires { request.name(); }) {
    return request.name();
  } else {
    return "";
  }
}

// A call that waits for the thread that makes sets, and has them grow.
struct Creation {
  std::shared_ptr<UnaryCall::Handler> handler;
  grpc::ByteBuffer request;
  UnaryCall::Done done;
};

// Hands a set's description on as the response that has it alone.
template <typename Response>
core::Then<absl::StatusOr<v1::ParameterSet>> AnswerWithSet(absl::AnyInvocable<void(absl::StatusOr<Response>)> answer) {
  return [answer = std::move(answer)](absl::StatusOr<v1::ParameterSet> set) mutable {
    if (!set.ok()) {
      answer(set.status());
      return;
    }
    Response response;
    *response.mutable_parameter_set() = *std::move(set);
    answer(std::move(response));
  };
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  return google::protobuf::util::TimeUtil::NanosecondsToDuration(absl::ToInt64Nanoseconds(duration));
}

}  // namespace

OptimizerService::OptimizerService(Parts parts) : parts_(std::move(parts)) {}

UnaryCall::Handler OptimizerService::FindHandler(absl::string_view method) {
  if (method == "CreateParameterSet") return OnCreationThread(Handle(&OptimizerService::CreateParameterSet));
  if (method == "AddTensors") return OnCreationThread(Handle(&OptimizerService::AddTensors));
  if (method == "GetParameterSet") return Handle(&OptimizerService::GetParameterSet);
  if (method == "ListParameterSets") return Handle(&OptimizerService::ListParameterSets);
  if (method == "ListTensors") return Handle(&OptimizerService::ListTensors);
  if (method == "DeleteParameterSet") return Handle(&OptimizerService::DeleteParameterSet);
  if (method == "UpdateParameterGroup") return Handle(&OptimizerService::UpdateParameterGroup);
  if (method == "UpdateParameterSet") return Handle(&OptimizerService::UpdateParameterSet);
  if (method == "Checkpoint") return Handle(&OptimizerService::Checkpoint);
  // It opens files.
  if (method == "ListCheckpoints") return OnCreationThread(Handle(&OptimizerService::ListCheckpoints));
  if (method == "RestoreCheckpoint") return OnCreationThread(Handle(&OptimizerService::RestoreCheckpoint));
  if (method == "Fork") return OnCreationThread(Handle(&OptimizerService::Fork));
  if (method == "GetStepResult") return Handle(&OptimizerService::GetStepResult);
  if (method == "GetServerInfo") return Handle(&OptimizerService::GetServerInfo);
  return nullptr;
}

UnaryCall::Handler OptimizerService::OnCreationThread(UnaryCall::Handler handler) {
  auto shared = std::make_shared<UnaryCall::Handler>(std::move(handler));
  // Decoded there, too: of what is small on the wire and large in memory there is one at a time.
  return [this, shared](const grpc::ByteBuffer& buffer, UnaryCall::Done done) {
    auto call = std::make_shared<Creation>(Creation{shared, buffer, std::move(done)});
    // Off gRPC's threads and off those that compute: a large set takes seconds to map.
    parts_.creation->Run(
        1, [call](int64_t) { (*call->handler)(call->request, std::move(call->done)); }, [] {});
  };
}

template <typename Request, typename Response>
UnaryCall::Handler OptimizerService::Handle(void (OptimizerService::*function)(const Request&, Answer<Response>)) {
  return [this, function](const grpc::ByteBuffer& buffer, UnaryCall::Done done) {
    Request request;
    // What this version does not know may be a condition: an error, too.
    constexpr bool kCreates =
        std::is_same_v<Request, v1::CreateParameterSetRequest> || std::is_same_v<Request, v1::AddTensorsRequest>;
    const int64_t max_bytes = kCreates ? wire::kMaxMessageBytes : kMaxRequestBytes;
    if (absl::Status status = Parse(buffer, &request, max_bytes); !status.ok()) {
      done(WithSet(SetOf(request), status));
      return;
    }
    (this->*function)(request,
                      [set = SetOf(request), done = std::move(done)](absl::StatusOr<Response> response) mutable {
                        if (response.ok()) {
                          done(Serialize(*response));
                        } else {
                          done(WithSet(set, response.status()));
                        }
                      });
  };
}

void OptimizerService::CreateParameterSet(const v1::CreateParameterSetRequest& request,
                                          Answer<v1::CreateParameterSetResponse> answer) {
  static RateLimitedLog log(LogLevel::kInfo);
  absl::StatusOr<v1::CreateParameterSetResponse> response = parts_.registry->Create(request);
  if (response.ok() && response->created()) {
    const v1::ParameterSet& set = response->parameter_set();
    log.Write(absl::StrCat("set ", set.name(), " created: ", set.tensor_count(), " tensors, ", set.parameter_count(),
                           " parameters, ", set.state_bytes(), " bytes"));
  }
  answer(std::move(response));
}

void OptimizerService::GetParameterSet(const v1::GetParameterSetRequest& request,
                                       Answer<v1::GetParameterSetResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.name());
  if (!set.ok()) {
    answer(set.status());
    return;
  }
  v1::GetParameterSetResponse response;
  *response.mutable_parameter_set() = (*set)->Describe();
  answer(std::move(response));
}

void OptimizerService::ListParameterSets(const v1::ListParameterSetsRequest& request,
                                         Answer<v1::ListParameterSetsResponse> answer) {
  answer(core::ListParameterSets(*parts_.registry, request));
}

void OptimizerService::ListTensors(const v1::ListTensorsRequest& request, Answer<v1::ListTensorsResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.name());
  if (set.ok()) {
    answer(core::ListTensors(**set, request));
  } else {
    answer(set.status());
  }
}

void OptimizerService::AddTensors(const v1::AddTensorsRequest& request, Answer<v1::AddTensorsResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (set.ok()) {
    (*set)->AddTensors(request, AnswerWithSet(std::move(answer)));
  } else {
    answer(set.status());
  }
}

void OptimizerService::UpdateParameterGroup(const v1::UpdateParameterGroupRequest& request,
                                            Answer<v1::UpdateParameterGroupResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (set.ok()) {
    (*set)->Update(request, AnswerWithSet(std::move(answer)));
  } else {
    answer(set.status());
  }
}

void OptimizerService::UpdateParameterSet(const v1::UpdateParameterSetRequest& request,
                                          Answer<v1::UpdateParameterSetResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.spec().name(), "spec.name");
  if (set.ok()) {
    (*set)->Update(request, AnswerWithSet(std::move(answer)));
  } else {
    answer(set.status());
  }
}

void OptimizerService::DeleteParameterSet(const v1::DeleteParameterSetRequest& request,
                                          Answer<v1::DeleteParameterSetResponse> answer) {
  parts_.registry->Delete(request, [name = request.name(), answer = std::move(answer)](absl::Status status) mutable {
    static RateLimitedLog log(LogLevel::kInfo);
    if (status.ok()) {
      log.Write(absl::StrCat("set ", name, " deleted"));
      answer(v1::DeleteParameterSetResponse());
    } else {
      answer(status);
    }
  });
}

void OptimizerService::Checkpoint(const v1::CheckpointRequest& request, Answer<v1::CheckpointResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (!set.ok()) {
    answer(set.status());
    return;
  }
  std::optional<uint64_t> incarnation;
  if (request.has_incarnation()) incarnation = request.incarnation();
  (*set)->Checkpoint(incarnation, [set = *set, answer = std::move(answer)](const absl::Status& made) mutable {
    if (!made.ok()) {
      answer(Unshared(made));
      return;
    }
    v1::CheckpointResponse response;
    *response.mutable_checkpoint() = set->Describe().last_checkpoint();
    answer(std::move(response));
  });
}

void OptimizerService::ListCheckpoints(const v1::ListCheckpointsRequest& request,
                                       Answer<v1::ListCheckpointsResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (!set.ok()) {
    answer(set.status());
    return;
  }
  absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = (*set)->ListCheckpoints();
  if (!checkpoints.ok()) {
    answer(checkpoints.status());
    return;
  }
  v1::ListCheckpointsResponse response;
  response.mutable_checkpoints()->Add(checkpoints->begin(), checkpoints->end());
  answer(std::move(response));
}

void OptimizerService::RestoreCheckpoint(const v1::RestoreCheckpointRequest& request,
                                         Answer<v1::RestoreCheckpointResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (!set.ok()) {
    answer(set.status());
    return;
  }
  absl::StatusOr<v1::ParameterSet> restored = (*set)->RestoreCheckpoint(request);
  if (!restored.ok()) {
    answer(restored.status());
    return;
  }
  v1::RestoreCheckpointResponse response;
  *response.mutable_parameter_set() = *std::move(restored);
  answer(std::move(response));
}

void OptimizerService::Fork(const v1::ForkRequest& request, Answer<v1::ForkResponse> answer) {
  answer(parts_.registry->Fork(request));
}

void OptimizerService::GetStepResult(const v1::GetStepResultRequest& request,
                                     Answer<v1::GetStepResultResponse> answer) {
  absl::StatusOr<std::shared_ptr<core::ParameterSet>> set = parts_.registry->Find(request.set(), "set");
  if (set.ok()) {
    answer((*set)->FindStepResult(request));
  } else {
    answer(set.status());
  }
}

void OptimizerService::GetServerInfo(const v1::GetServerInfoRequest& /*request*/,
                                     Answer<v1::GetServerInfoResponse> answer) {
  v1::GetServerInfoResponse info;
  info.set_version(kVersion);
  v1::ServerLimits* limits = info.mutable_limits();
  limits->set_max_tensors(core::kMaxTensors);
  limits->set_max_rank(core::kMaxRank);
  limits->set_max_groups(core::kMaxGroups);
  limits->set_max_set_name_bytes(core::kMaxSetNameBytes);
  limits->set_max_tensor_name_bytes(core::kMaxTensorNameBytes);
  limits->set_max_labels(core::kMaxLabels);
  limits->set_max_message_bytes(wire::kMaxMessageBytes);
  limits->set_max_request_bytes(kMaxRequestBytes);
  limits->set_max_streams(parts_.limits.max_streams);
  limits->set_remembered_steps(core::kRememberedSteps);
  limits->set_max_chunks_per_message(wire::kMaxChunks);
  limits->set_max_waiting_calls(parts_.limits.max_waiting_calls);
  limits->set_recommended_message_bytes(wire::kMessageBytes);
  limits->set_recommended_chunk_elements(wire::kChunkElements);
  limits->set_max_metadata_bytes(static_cast<int32_t>(parts_.limits.max_metadata_bytes));
  limits->set_max_connections(parts_.limits.max_connections);
  limits->set_max_calls_per_connection(parts_.limits.max_calls_per_connection);
  *limits->mutable_patience() = ToProto(parts_.limits.patience);
  limits->set_min_rate(static_cast<int64_t>(parts_.limits.min_rate));
  *limits->mutable_think_time() = ToProto(parts_.limits.think_time);
  *limits->mutable_admission_wait() = ToProto(parts_.limits.admission_wait);
  for (const core::Budget* budget : parts_.budgets) {
    v1::MemoryBudget* shown = info.add_budgets();
    shown->set_name(std::string(budget->name()));
    shown->set_capacity_bytes(budget->capacity());
    shown->set_used_bytes(budget->used());
  }
  for (const core::Resources& resources : parts_.registry->devices()) {
    v1::Device* const device = info.add_devices();
    *device = resources.backend->Describe();
    if (resources.backend->on_host()) device->set_threads(parts_.compute->threads());
  }
  answer(std::move(info));
}

}  // namespace adamant::rpc
