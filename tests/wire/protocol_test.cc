// What clients rely on that are generated from the .proto files: those of the last release (proto/released) find in
// this build whatever they know, and those in other languages find no name taken.
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "adamant/v1/service.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/descriptor_database.h"
#include "gtest/gtest.h"

namespace adamant {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using google::protobuf::FileDescriptorProto;
using google::protobuf::FileDescriptorSet;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

FileDescriptorSet Released() {
  std::ifstream file(ADAMANT_RELEASED_PROTOCOL, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  FileDescriptorSet released;
  EXPECT_TRUE(file.good() && released.ParseFromString(bytes.str())) << ADAMANT_RELEASED_PROTOCOL;
  return released;
}

// All that is to stay as it was, as text.
std::string Definition(const FieldDescriptor& field) {
  google::protobuf::FieldDescriptorProto definition;
  field.CopyTo(&definition);
  definition.clear_json_name();  // only where it was parsed: below it is in any case
  // A place in a list, which grows. The name is what counts.
  definition.clear_oneof_index();
  const auto* oneof = field.real_containing_oneof();
  return absl::StrCat(definition.ShortDebugString(), ", in JSON ", field.json_name(),
                      oneof != nullptr ? ", of " + oneof->name() : "");
}

std::string Definition(const EnumValueDescriptor& value) { return absl::StrCat(value.number()); }

std::string Definition(const MethodDescriptor& method) {
  google::protobuf::MethodDescriptorProto definition;
  method.CopyTo(&definition);
  return definition.ShortDebugString();
}

// Adds to `breaks` if this build does not have `released`, or has another definition of it.
template <typename T>
void Compare(const T& released, const T* built, std::vector<std::string>* breaks) {
  if (built == nullptr) {
    breaks->push_back(absl::StrCat(released.full_name(), " is gone"));
  } else if (Definition(*built) != Definition(released)) {
    breaks->push_back(
        absl::StrCat(released.full_name(), " was ", Definition(released), " and is ", Definition(*built)));
  }
}

void CompareEnum(const EnumDescriptor& released, std::vector<std::string>* breaks) {
  const EnumDescriptor* built = DescriptorPool::generated_pool()->FindEnumTypeByName(released.full_name());
  for (int i = 0; i < released.value_count(); ++i) {
    Compare(*released.value(i), built != nullptr ? built->FindValueByName(released.value(i)->name()) : nullptr, breaks);
  }
}

void CompareMessage(const Descriptor& released, std::vector<std::string>* breaks) {
  const Descriptor* built = DescriptorPool::generated_pool()->FindMessageTypeByName(released.full_name());
  if (built == nullptr) breaks->push_back(absl::StrCat(released.full_name(), " is gone"));
  for (int i = 0; i < released.field_count(); ++i) {
    Compare(*released.field(i), built != nullptr ? built->FindFieldByName(released.field(i)->name()) : nullptr, breaks);
  }
  for (int i = 0; i < released.nested_type_count(); ++i) CompareMessage(*released.nested_type(i), breaks);
  for (int i = 0; i < released.enum_type_count(); ++i) CompareEnum(*released.enum_type(i), breaks);
}

void CompareService(const ServiceDescriptor& released, std::vector<std::string>* breaks) {
  const ServiceDescriptor* built = DescriptorPool::generated_pool()->FindServiceByName(released.full_name());
  for (int i = 0; i < released.method_count(); ++i) {
    Compare(*released.method(i), built != nullptr ? built->FindMethodByName(released.method(i)->name()) : nullptr,
            breaks);
  }
}

// What of `released` this build does not have as it was.
std::vector<std::string> Breaks(const FileDescriptorSet& released) {
  // Asked of a message of service.proto: that links the file in, and all that it imports.
  EXPECT_NE(v1::GetServerInfoRequest::descriptor(), nullptr);
  google::protobuf::SimpleDescriptorDatabase database;
  for (const FileDescriptorProto& file : released.file()) database.Add(file);
  const DescriptorPool pool(&database);
  std::vector<std::string> breaks;
  for (const FileDescriptorProto& name : released.file()) {
    const FileDescriptor* file = pool.FindFileByName(name.name());
    if (file == nullptr) {
      breaks.push_back(absl::StrCat(name.name(), " cannot be built"));
      continue;
    }
    for (int i = 0; i < file->message_type_count(); ++i) CompareMessage(*file->message_type(i), &breaks);
    for (int i = 0; i < file->enum_type_count(); ++i) CompareEnum(*file->enum_type(i), &breaks);
    for (int i = 0; i < file->service_count(); ++i) CompareService(*file->service(i), &breaks);
  }
  return breaks;
}

FileDescriptorProto* File(FileDescriptorSet* set, const std::string& name) {
  for (FileDescriptorProto& file : *set->mutable_file()) {
    if (file.name() == name) return &file;
  }
  ADD_FAILURE() << name << " was not released";
  return set->add_file();
}

// What a Java file has under a plain name that says `import adamant.v1.*; import io.grpc.*;`.
TEST(ProtocolTest, NoTypeIsNamedAsOneOfJavaOrGrpc) {
  const std::set<std::string> taken = {
      // java.lang
      "Boolean", "Byte", "Character", "Class", "Compiler", "Deprecated", "Double", "Enum", "Error", "Exception",
      "Float", "Integer", "Iterable", "Long", "Math", "Module", "Number", "Object", "Override", "Package", "Process",
      "Record", "Runnable", "Runtime", "Short", "String", "System", "Thread", "Throwable", "Void",
      // io.grpc
      "Attributes", "Channel", "Codec", "Context", "Contexts", "Deadline", "Drainable", "Grpc", "Metadata", "Server",
      "Status"};
  const Descriptor* any_message = v1::GetServerInfoRequest::descriptor();
  std::vector<const FileDescriptor*> files = {any_message->file()};
  for (int i = 0; i < any_message->file()->dependency_count(); ++i) {
    files.push_back(any_message->file()->dependency(i));
  }
  std::vector<std::string> names;
  for (const FileDescriptor* file : files) {
    if (file->package() != "adamant.v1") continue;
    for (int i = 0; i < file->message_type_count(); ++i) names.push_back(file->message_type(i)->name());
    for (int i = 0; i < file->enum_type_count(); ++i) names.push_back(file->enum_type(i)->name());
    // The class that stands for the file.
    names.push_back(file->options().java_outer_classname());
  }
  EXPECT_THAT(names, testing::IsSupersetOf({"ErrorDetail", "TensorChunk", "Slot", "ErrorProto", "ServiceProto"}));
  for (const std::string& name : names) EXPECT_EQ(taken.count(name), 0u) << name;
}

TEST(ReleasedProtocolTest, ThisBuildStillHasAllOfIt) {
  const FileDescriptorSet released = Released();
  EXPECT_GE(released.file_size(), 4);
  EXPECT_THAT(Breaks(released), testing::IsEmpty());
}

// As they would be found if the release had had what this build has not.
TEST(ReleasedProtocolTest, WhateverBreaksAClientIsFound) {
  FileDescriptorSet released = Released();
  FileDescriptorProto* error = File(&released, "adamant/v1/error.proto");
  error->mutable_enum_type(0)->mutable_value(1)->set_number(999);
  auto* detail = error->mutable_message_type(0);
  detail->mutable_field(0)->set_number(998);
  detail->mutable_field(1)->set_type(google::protobuf::FieldDescriptorProto::TYPE_BYTES);
  detail->mutable_field(6)->set_name("place");
  detail->mutable_field(6)->set_json_name("place");
  error->add_message_type()->set_name("Forgotten");
  auto* service = File(&released, "adamant/v1/service.proto")->mutable_service(0);
  service->mutable_method(0)->set_server_streaming(true);
  service->mutable_method(1)->set_name("Forget");

  using testing::StartsWith;
  EXPECT_THAT(Breaks(released),
              testing::UnorderedElementsAre(
                  StartsWith("adamant.v1.ERROR_REASON_MALFORMED_MESSAGE was 999"),
                  StartsWith("adamant.v1.ErrorDetail.reason was"), StartsWith("adamant.v1.ErrorDetail.set was"),
                  StartsWith("adamant.v1.ErrorDetail.place is gone"), StartsWith("adamant.v1.Forgotten is gone"),
                  StartsWith("adamant.v1.OptimizerService.CreateParameterSet was"),
                  StartsWith("adamant.v1.OptimizerService.Forget is gone")));
}

}  // namespace
}  // namespace adamant
