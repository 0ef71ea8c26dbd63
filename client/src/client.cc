// Arguments into messages, and messages out of responses.
#include "adamant/client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

// What the mask and the preconditions of both updates are made of.
template <typename Request>
void SetUpdate(const std::vector<std::string>& fields, const UpdateOptions& options, Request* request) {
  request->mutable_update_mask()->mutable_paths()->Add(fields.begin(), fields.end());
  if (options.incarnation.has_value()) request->set_incarnation(*options.incarnation);
  if (options.config_revision.has_value()) request->set_config_revision(*options.config_revision);
}

template <typename Response>
absl::StatusOr<v1::ParameterSet> TakeSet(absl::StatusOr<Response> response) {
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_parameter_set());
}

// The arrays of a state that are not empty, parameters first.
template <typename Target, typename State>
std::vector<Target> Arrays(const State& state) {
  std::vector<Target> arrays = {{v1::SLOT_PARAMETER, state.parameters},
                                {v1::SLOT_EXP_AVG, state.exp_avg},
                                {v1::SLOT_EXP_AVG_SQ, state.exp_avg_sq},
                                {v1::SLOT_MAX_EXP_AVG_SQ, state.max_exp_avg_sq},
                                {v1::SLOT_MOMENTUM_BUFFER, state.momentum_buffer}};
  std::erase_if(arrays, [](const Target& array) { return array.tensors.empty(); });
  return arrays;
}

WriteCall MakeWriteCall(absl::string_view set, v1::WriteMode mode, const WriteOptions& options) {
  WriteCall call;
  call.header.set_set(std::string(set));
  call.header.set_mode(mode);
  call.header.set_request_id(options.request_id);
  if (options.incarnation.has_value()) call.header.set_incarnation(*options.incarnation);
  call.read = options.read;
  call.progress = options.progress;
  return call;
}

ReadCall MakeReadCall(absl::string_view set, const ReadOptions& options) {
  ReadCall call;
  call.request.set_set(std::string(set));
  call.request.set_may_abort(options.may_abort);
  if (options.incarnation.has_value()) call.request.set_incarnation(*options.incarnation);
  if (options.if_newer_than_step.has_value()) call.request.set_if_newer_than_step(*options.if_newer_than_step);
  call.progress = options.progress;
  return call;
}

// The spans of `tensors` alone, each in its place; INVALID_ARGUMENT if there is none for one of them.
template <typename Element>
absl::StatusOr<std::vector<absl::Span<Element>>> Named(absl::Span<const absl::Span<Element>> spans,
                                                       const std::vector<int32_t>& tensors) {
  std::vector<absl::Span<Element>> named(spans.size());
  for (const int32_t tensor : tensors) {
    if (tensor < 0 || static_cast<size_t>(tensor) >= spans.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensors: expected indices of spans, below ", spans.size(), ", got ", tensor));
    }
    named[tensor] = spans[tensor];
  }
  return named;
}

// Reads into the spans of `tensors` alone; of all, if that is empty.
absl::StatusOr<v1::ReadHeader> ReadNamed(ReadCall call, const std::vector<int32_t>& tensors, Connection* connection) {
  if (tensors.empty()) return connection->Read(call);
  std::vector<std::vector<absl::Span<float>>> spans;
  for (ReadCall::Target& target : call.targets) {
    absl::StatusOr<std::vector<absl::Span<float>>> named = Named(target.tensors, tensors);
    if (!named.ok()) return named.status();
    target.tensors = spans.emplace_back(*std::move(named));
  }
  call.request.mutable_tensors()->Add(tensors.begin(), tensors.end());
  return connection->Read(call);
}

}  // namespace

std::vector<v1::Slot> OptimizerSlots(const v1::ParameterSet& set) {
  bool adam = false, amsgrad = false, momentum = false;
  for (const v1::ParameterGroup& group : set.groups()) {
    adam |= group.has_adam();
    amsgrad |= group.adam().amsgrad();
    momentum |= group.sgd().momentum() > 0;
  }
  std::vector<v1::Slot> slots;
  if (adam) slots = {v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ};
  if (amsgrad) slots.push_back(v1::SLOT_MAX_EXP_AVG_SQ);
  if (momentum) slots.push_back(v1::SLOT_MOMENTUM_BUFFER);
  return slots;
}

absl::StatusOr<Client> Client::Connect(const std::string& target, const ClientOptions& options) {
  absl::StatusOr<std::shared_ptr<Connection>> connection = MakeConnection(target, options);
  if (!connection.ok()) return connection.status();
  return Client(*std::move(connection));
}

absl::StatusOr<v1::CreateParameterSetResponse> Client::CreateParameterSet(const v1::ParameterSetSpec& spec,
                                                                          v1::IfExists if_exists) {
  v1::CreateParameterSetRequest request;
  *request.mutable_spec() = spec;
  request.set_if_exists(if_exists);
  return connection_->CreateParameterSet(request);
}

absl::StatusOr<v1::ParameterSet> Client::GetParameterSet(absl::string_view name) {
  v1::GetParameterSetRequest request;
  request.set_name(std::string(name));
  return TakeSet(connection_->GetParameterSet(request));
}

absl::StatusOr<v1::ListParameterSetsResponse> Client::ListParameterSets(const v1::ListParameterSetsRequest& request) {
  return connection_->ListParameterSets(request);
}

absl::StatusOr<std::vector<v1::ParameterSet>> Client::ListAllParameterSets(absl::string_view name_prefix) {
  v1::ListParameterSetsRequest request;
  request.set_name_prefix(std::string(name_prefix));
  std::vector<v1::ParameterSet> sets;
  do {
    absl::StatusOr<v1::ListParameterSetsResponse> response = connection_->ListParameterSets(request);
    if (!response.ok()) return response.status();
    for (v1::ParameterSet& set : *response->mutable_parameter_sets()) sets.push_back(std::move(set));
    request.set_page_token(response->next_page_token());
  } while (!request.page_token().empty());
  return sets;
}

absl::StatusOr<std::vector<v1::Tensor>> Client::ListTensors(absl::string_view set) {
  v1::ListTensorsRequest request;
  request.set_name(std::string(set));
  std::vector<v1::Tensor> tensors;
  do {
    absl::StatusOr<v1::ListTensorsResponse> response = connection_->ListTensors(request);
    if (!response.ok()) return response.status();
    for (v1::Tensor& tensor : *response->mutable_tensors()) tensors.push_back(std::move(tensor));
    request.set_page_token(response->next_page_token());
  } while (!request.page_token().empty());
  return tensors;
}

absl::Status Client::DeleteParameterSet(absl::string_view name, uint64_t incarnation) {
  v1::DeleteParameterSetRequest request;
  request.set_name(std::string(name));
  request.set_incarnation(incarnation);
  return connection_->DeleteParameterSet(request).status();
}

absl::StatusOr<v1::ParameterSet> Client::AddTensors(absl::string_view set, const std::vector<v1::TensorSpec>& tensors,
                                                    const std::vector<v1::ParameterGroup>& groups) {
  v1::AddTensorsRequest request;
  request.set_set(std::string(set));
  request.mutable_tensors()->Add(tensors.begin(), tensors.end());
  request.mutable_groups()->Add(groups.begin(), groups.end());
  return TakeSet(connection_->AddTensors(request));
}

absl::StatusOr<v1::ParameterSet> Client::UpdateParameterGroup(absl::string_view set, const v1::ParameterGroup& group,
                                                              const std::vector<std::string>& fields,
                                                              const UpdateOptions& options) {
  v1::UpdateParameterGroupRequest request;
  request.set_set(std::string(set));
  *request.mutable_group() = group;
  SetUpdate(fields, options, &request);
  return TakeSet(connection_->UpdateParameterGroup(request));
}

absl::StatusOr<v1::ParameterSet> Client::UpdateParameterSet(const v1::ParameterSetSpec& values,
                                                            const std::vector<std::string>& fields,
                                                            const UpdateOptions& options) {
  v1::UpdateParameterSetRequest request;
  *request.mutable_spec() = values;
  SetUpdate(fields, options, &request);
  return TakeSet(connection_->UpdateParameterSet(request));
}

absl::StatusOr<std::unique_ptr<EventStream>> Client::Watch(absl::string_view set) {
  v1::WatchParameterSetRequest request;
  request.set_name(std::string(set));
  return connection_->Watch(request);
}

absl::StatusOr<v1::Checkpoint> Client::Checkpoint(absl::string_view set, std::optional<uint64_t> incarnation) {
  v1::CheckpointRequest request;
  request.set_set(std::string(set));
  if (incarnation.has_value()) request.set_incarnation(*incarnation);
  absl::StatusOr<v1::CheckpointResponse> response = connection_->Checkpoint(request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_checkpoint());
}

absl::StatusOr<std::vector<v1::Checkpoint>> Client::ListCheckpoints(absl::string_view set) {
  v1::ListCheckpointsRequest request;
  request.set_set(std::string(set));
  absl::StatusOr<v1::ListCheckpointsResponse> response = connection_->ListCheckpoints(request);
  if (!response.ok()) return response.status();
  return std::vector<v1::Checkpoint>(response->checkpoints().begin(), response->checkpoints().end());
}

absl::StatusOr<v1::ParameterSet> Client::RestoreCheckpoint(absl::string_view set, const v1::Checkpoint& checkpoint,
                                                           std::optional<uint64_t> incarnation) {
  v1::RestoreCheckpointRequest request;
  request.set_set(std::string(set));
  if (incarnation.has_value()) request.set_incarnation(*incarnation);
  request.set_checkpoint_incarnation(checkpoint.incarnation());
  request.set_checkpoint_step(checkpoint.step());
  return TakeSet(connection_->RestoreCheckpoint(request));
}

absl::StatusOr<v1::ParameterSet> Client::Fork(absl::string_view set, absl::string_view name,
                                              const ForkOptions& options) {
  v1::ForkRequest request;
  request.set_set(std::string(set));
  if (options.incarnation.has_value()) request.set_incarnation(*options.incarnation);
  request.set_name(std::string(name));
  request.set_device(options.device);
  if (options.durability.has_value()) *request.mutable_durability() = *options.durability;
  return TakeSet(connection_->Fork(request));
}

absl::StatusOr<v1::GetStepResultResponse> Client::GetStepResult(absl::string_view set, absl::string_view request_id) {
  v1::GetStepResultRequest request;
  request.set_set(std::string(set));
  request.set_request_id(std::string(request_id));
  return connection_->GetStepResult(request);
}

absl::StatusOr<v1::GetServerInfoResponse> Client::GetServerInfo() {
  return connection_->GetServerInfo(v1::GetServerInfoRequest());
}

absl::StatusOr<v1::WriteTensorsResponse> Client::WriteParameters(absl::string_view set, ConstTensors parameters,
                                                                 const WriteOptions& options) {
  WriteCall call = MakeWriteCall(set, v1::WRITE_MODE_PARAMETERS, options);
  absl::StatusOr<std::vector<absl::Span<const float>>> named = Named(parameters, options.tensors);
  if (!named.ok()) return named.status();
  if (!options.tensors.empty()) parameters = *named;
  call.header.mutable_tensors()->Add(options.tensors.begin(), options.tensors.end());
  call.sources = {{v1::SLOT_PARAMETER, parameters}};
  return connection_->Write(call);
}

absl::StatusOr<v1::WriteTensorsResponse> Client::WriteState(absl::string_view set, const ConstState& state,
                                                            const WriteOptions& options) {
  WriteCall call = MakeWriteCall(set, v1::WRITE_MODE_FULL, options);
  call.header.set_step(state.step);
  call.header.mutable_update_counts()->Add(state.update_counts.begin(), state.update_counts.end());
  call.sources = Arrays<WriteCall::Source>(state);
  return connection_->Write(call);
}

absl::StatusOr<v1::ReadHeader> Client::ReadParameters(absl::string_view set, MutableTensors parameters,
                                                      const ReadOptions& options) {
  ReadCall call = MakeReadCall(set, options);
  call.targets = {{v1::SLOT_PARAMETER, parameters}};
  return ReadNamed(std::move(call), options.tensors, connection_.get());
}

absl::StatusOr<v1::ReadHeader> Client::ReadState(absl::string_view set, const MutableState& state,
                                                 const ReadOptions& options) {
  ReadCall call = MakeReadCall(set, options);
  call.targets = Arrays<ReadCall::Target>(state);
  return ReadNamed(std::move(call), options.tensors, connection_.get());
}

absl::StatusOr<StepStream> Client::OpenStepStream(absl::string_view set) {
  absl::StatusOr<v1::ParameterSet> parameter_set = GetParameterSet(set);
  if (!parameter_set.ok()) return parameter_set.status();
  absl::StatusOr<std::vector<v1::Tensor>> tensors = ListTensors(set);
  if (!tensors.ok()) return tensors.status();
  return StepStream(connection_, *parameter_set, *std::move(tensors));
}

}  // namespace adamant
