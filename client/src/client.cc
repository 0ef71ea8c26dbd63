// Arguments into messages, and messages out of responses.
#include "adamant/client.h"

#include <utility>

namespace adamant {
namespace {

WriteCall MakeWriteCall(absl::string_view set, v1::WriteMode mode, const WriteOptions& options) {
  WriteCall call;
  call.header.set_set(std::string(set));
  call.header.set_mode(mode);
  call.header.set_request_id(options.request_id);
  if (options.incarnation.has_value()) call.header.set_incarnation(*options.incarnation);
  return call;
}

ReadCall MakeReadCall(absl::string_view set, const ReadOptions& options) {
  ReadCall call;
  call.request.set_set(std::string(set));
  call.request.set_may_abort(options.may_abort);
  if (options.incarnation.has_value()) call.request.set_incarnation(*options.incarnation);
  if (options.if_newer_than_step.has_value()) call.request.set_if_newer_than_step(*options.if_newer_than_step);
  return call;
}

}  // namespace

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
  absl::StatusOr<v1::GetParameterSetResponse> response = connection_->GetParameterSet(request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_parameter_set());
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
  call.sources = {{v1::SLOT_PARAMETER, parameters}};
  return connection_->Write(call);
}

absl::StatusOr<v1::WriteTensorsResponse> Client::WriteState(absl::string_view set, const ConstState& state,
                                                            const WriteOptions& options) {
  WriteCall call = MakeWriteCall(set, v1::WRITE_MODE_FULL, options);
  call.header.set_step(state.step);
  call.sources = {{v1::SLOT_PARAMETER, state.parameters},
                  {v1::SLOT_EXP_AVG, state.exp_avg},
                  {v1::SLOT_EXP_AVG_SQ, state.exp_avg_sq}};
  return connection_->Write(call);
}

absl::StatusOr<v1::ReadHeader> Client::ReadParameters(absl::string_view set, MutableTensors parameters,
                                                      const ReadOptions& options) {
  ReadCall call = MakeReadCall(set, options);
  call.targets = {{v1::SLOT_PARAMETER, parameters}};
  return connection_->Read(call);
}

absl::StatusOr<v1::ReadHeader> Client::ReadState(absl::string_view set, const MutableState& state,
                                                 const ReadOptions& options) {
  ReadCall call = MakeReadCall(set, options);
  call.targets = {{v1::SLOT_PARAMETER, state.parameters},
                  {v1::SLOT_EXP_AVG, state.exp_avg},
                  {v1::SLOT_EXP_AVG_SQ, state.exp_avg_sq}};
  return connection_->Read(call);
}

absl::StatusOr<StepStream> Client::OpenStepStream(absl::string_view set) {
  absl::StatusOr<v1::ParameterSet> parameter_set = GetParameterSet(set);
  if (!parameter_set.ok()) return parameter_set.status();
  absl::StatusOr<std::vector<v1::Tensor>> tensors = ListTensors(set);
  if (!tensors.ok()) return tensors.status();
  return StepStream(connection_, *parameter_set, *std::move(tensors));
}

}  // namespace adamant
