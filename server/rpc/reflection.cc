#include "server/rpc/reflection.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "adamant/v1/service.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "proto/wire/tensor_message.h"

namespace adamant::rpc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using ::grpc::reflection::v1::ServerReflectionRequest;
using ::grpc::reflection::v1::ServerReflectionResponse;

// Names are short. The time that protobuf takes to say that there is no such name grows with the square of its dots: 10
// s for 200 KB of them.
constexpr size_t kMaxNameBytes = 1024;

void SetError(grpc::StatusCode code, const std::string& message, ServerReflectionResponse* response) {
  response->mutable_error_response()->set_error_code(code);
  response->mutable_error_response()->set_error_message(message);
}

// Adds `file`, unless it is there already, and then what it depends on: clients such as ghz 0.93 take the first file
// for the one that they asked for.
void AddFile(const FileDescriptor* file, std::set<const FileDescriptor*>* added, ServerReflectionResponse* response) {
  if (!added->insert(file).second) return;
  google::protobuf::FileDescriptorProto definition;
  file->CopyTo(&definition);
  response->mutable_file_descriptor_response()->add_file_descriptor_proto(definition.SerializeAsString());
  for (int i = 0; i < file->dependency_count(); ++i) AddFile(file->dependency(i), added, response);
}

void SetFile(const FileDescriptor* file, const std::string& name, ServerReflectionResponse* response) {
  if (file == nullptr) {
    SetError(grpc::StatusCode::NOT_FOUND, absl::StrCat("not found: ", name), response);
    return;
  }
  std::set<const FileDescriptor*> added;
  AddFile(file, &added, response);
}

const FileDescriptor* FindExtension(const DescriptorPool& pool, const std::string& type, int number) {
  const Descriptor* const extended = pool.FindMessageTypeByName(type);
  const FieldDescriptor* const extension = extended != nullptr ? pool.FindExtensionByNumber(extended, number) : nullptr;
  return extension != nullptr ? extension->file() : nullptr;
}

void SetExtensionNumbers(const DescriptorPool& pool, const std::string& type, ServerReflectionResponse* response) {
  const Descriptor* const extended = pool.FindMessageTypeByName(type);
  if (extended == nullptr) {
    SetError(grpc::StatusCode::NOT_FOUND, absl::StrCat("not found: ", type), response);
    return;
  }
  std::vector<const FieldDescriptor*> extensions;
  pool.FindAllExtensions(extended, &extensions);
  response->mutable_all_extension_numbers_response()->set_base_type_name(type);
  for (const FieldDescriptor* extension : extensions) {
    response->mutable_all_extension_numbers_response()->add_extension_number(extension->number());
  }
}

void ListServices(ServerReflectionResponse* response) {
  // Asked of a message of each file: that links the file in.
  for (const Descriptor* message :
       {v1::GetServerInfoRequest::descriptor(), ::grpc::health::v1::HealthCheckRequest::descriptor(),
        ServerReflectionRequest::descriptor()}) {
    for (int i = 0; i < message->file()->service_count(); ++i) {
      response->mutable_list_services_response()->add_service()->set_name(message->file()->service(i)->full_name());
    }
  }
}

}  // namespace

ServerReflectionResponse Reflect(const ServerReflectionRequest& request) {
  const DescriptorPool& pool = *DescriptorPool::generated_pool();
  ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kFileByFilename:
      SetFile(pool.FindFileByName(request.file_by_filename()), request.file_by_filename(), &response);
      break;
    case ServerReflectionRequest::kFileContainingSymbol:
      SetFile(pool.FindFileContainingSymbol(request.file_containing_symbol()), request.file_containing_symbol(),
              &response);
      break;
    case ServerReflectionRequest::kFileContainingExtension: {
      const std::string& type = request.file_containing_extension().containing_type();
      const int number = request.file_containing_extension().extension_number();
      SetFile(FindExtension(pool, type, number), absl::StrCat("extension ", number, " of ", type), &response);
      break;
    }
    case ServerReflectionRequest::kAllExtensionNumbersOfType:
      SetExtensionNumbers(pool, request.all_extension_numbers_of_type(), &response);
      break;
    case ServerReflectionRequest::kListServices:
      ListServices(&response);
      break;
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      SetError(grpc::StatusCode::INVALID_ARGUMENT, "message_request: expected one", &response);
      break;
  }
  return response;
}

void ReflectionCall::OnOpen() {
  EndOperation(wire::kMaxMessageBytes);
  Read();
}

void ReflectionCall::OnMessage(const grpc::ByteBuffer& buffer) {
  BeginOperation({.bytes = wire::kMaxMessageBytes});
  if (buffer.Length() > kMaxNameBytes) {
    End(absl::InvalidArgumentError(
        absl::StrCat("a request of ", buffer.Length(), " bytes: expected at most ", kMaxNameBytes)));
    return;
  }
  ServerReflectionRequest request;
  if (absl::Status status = Parse(buffer, &request); !status.ok()) {
    End(status);
    return;
  }
  Write(Serialize(Reflect(request)));
}

void ReflectionCall::OnHalfClose() { End(absl::OkStatus()); }

void ReflectionCall::OnWritten() { OnOpen(); }

}  // namespace adamant::rpc
