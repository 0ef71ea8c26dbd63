// What reflection says of this server, and of what there is not.
#include "server/rpc/reflection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/descriptor_database.h"

namespace adamant::rpc {
namespace {

using ::grpc::reflection::v1::ServerReflectionRequest;
using ::grpc::reflection::v1::ServerReflectionResponse;

// What came in answer to a request for a file, as a client sees it that has nothing else.
class Files {
 public:
  explicit Files(const ServerReflectionResponse& response) {
    for (const std::string& bytes : response.file_descriptor_response().file_descriptor_proto()) {
      google::protobuf::FileDescriptorProto file;
      EXPECT_TRUE(file.ParseFromString(bytes));
      EXPECT_TRUE(database_.Add(file)) << file.name();
      names_.push_back(file.name());
    }
  }

  // In the order in which they came.
  const std::vector<std::string>& names() const { return names_; }
  // Finds only what can be built from them.
  const google::protobuf::DescriptorPool& pool() const { return pool_; }

 private:
  std::vector<std::string> names_;
  google::protobuf::SimpleDescriptorDatabase database_;
  google::protobuf::DescriptorPool pool_{&database_};
};

ServerReflectionResponse FileContaining(const std::string& symbol) {
  ServerReflectionRequest request;
  request.set_file_containing_symbol(symbol);
  return Reflect(request);
}

TEST(ReflectionTest, ListsTheServices) {
  ServerReflectionRequest request;
  request.set_list_services("*");
  std::vector<std::string> names;
  const ServerReflectionResponse response = Reflect(request);
  for (const auto& service : response.list_services_response().service()) names.push_back(service.name());
  EXPECT_THAT(names, testing::ElementsAre("adamant.v1.OptimizerService", "grpc.health.v1.Health",
                                          "grpc.reflection.v1.ServerReflection"));
  EXPECT_EQ(response.original_request().list_services(), "*");
}

TEST(ReflectionTest, EveryMethodOfEveryServiceThatItListsCanBeResolved) {
  ServerReflectionRequest list;
  list.set_list_services("");
  const ServerReflectionResponse services = Reflect(list);
  for (const auto& listed : services.list_services_response().service()) {
    const Files files(FileContaining(listed.name()));
    const google::protobuf::ServiceDescriptor* service = files.pool().FindServiceByName(listed.name());
    ASSERT_NE(service, nullptr) << listed.name();
    EXPECT_GT(service->method_count(), 0);
    for (int i = 0; i < service->method_count(); ++i) {
      const google::protobuf::MethodDescriptor& method = *service->method(i);
      const Files of_method(FileContaining(method.full_name()));
      EXPECT_NE(of_method.pool().FindMethodByName(method.full_name()), nullptr) << method.full_name();
      const Files of_input(FileContaining(method.input_type()->full_name()));
      EXPECT_NE(of_input.pool().FindMessageTypeByName(method.input_type()->full_name()), nullptr) << method.full_name();
    }
  }
}

TEST(ReflectionTest, TheFileThatWasAskedForComesFirst) {
  ServerReflectionRequest by_name;
  by_name.set_file_by_filename("adamant/v1/step.proto");
  EXPECT_THAT(Files(Reflect(by_name)).names(),
              testing::ElementsAre("adamant/v1/step.proto", "adamant/v1/parameter_set.proto",
                                   "google/protobuf/timestamp.proto"));
  for (const auto& [symbol, file] : std::map<std::string, std::string>{
           {"adamant.v1.OptimizerService", "adamant/v1/service.proto"},
           {"adamant.v1.OptimizerService.Step", "adamant/v1/service.proto"},
           {"adamant.v1.ServerLimits.max_rank", "adamant/v1/service.proto"},
           {"adamant.v1.StepRequest", "adamant/v1/step.proto"},
           {"adamant.v1.ErrorReason", "adamant/v1/error.proto"},
           {"grpc.health.v1.Health", "grpc/health/v1/health.proto"},
           {"grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"}}) {
    const std::vector<std::string> names = Files(FileContaining(symbol)).names();
    ASSERT_THAT(names, testing::Not(testing::IsEmpty())) << symbol;
    EXPECT_EQ(names.front(), file) << symbol;
  }
}

TEST(ReflectionTest, AFileComesWithAllThatItDependsOnOnce) {
  ServerReflectionRequest request;
  request.set_file_by_filename("adamant/v1/service.proto");
  const Files files(Reflect(request));
  EXPECT_THAT(files.names(), testing::UnorderedElementsAre(
                                 "adamant/v1/service.proto", "adamant/v1/error.proto", "adamant/v1/parameter_set.proto",
                                 "adamant/v1/step.proto", "google/protobuf/any.proto", "google/protobuf/duration.proto",
                                 "google/protobuf/field_mask.proto", "google/protobuf/timestamp.proto"));
}

TEST(ReflectionTest, WhoeverHasTheServiceCanDecodeItsErrors) {
  const Files files(FileContaining("adamant.v1.OptimizerService"));
  for (const char* message : {"adamant.v1.ErrorDetail", "adamant.v1.ErrorStatus", "adamant.v1.RetryInfo"}) {
    EXPECT_NE(files.pool().FindMessageTypeByName(message), nullptr) << message;
  }
}

TEST(ReflectionTest, NothingHereIsExtended) {
  ServerReflectionRequest request;
  request.set_all_extension_numbers_of_type("adamant.v1.StepHeader");
  const ServerReflectionResponse response = Reflect(request);
  EXPECT_EQ(response.all_extension_numbers_response().base_type_name(), "adamant.v1.StepHeader");
  EXPECT_EQ(response.all_extension_numbers_response().extension_number_size(), 0);
}

TEST(ReflectionTest, WhatThereIsNotIsNotFound) {
  std::vector<ServerReflectionRequest> requests(5);
  requests[0].set_file_by_filename("no.proto");
  requests[1].set_file_containing_symbol("no.Symbol");
  requests[2].mutable_file_containing_extension()->set_containing_type("no.Message");
  requests[3].mutable_file_containing_extension()->set_containing_type("adamant.v1.StepHeader");
  requests[3].mutable_file_containing_extension()->set_extension_number(1);
  requests[4].set_all_extension_numbers_of_type("no.Message");
  for (const ServerReflectionRequest& request : requests) {
    EXPECT_EQ(Reflect(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND)
        << request.ShortDebugString();
  }
}

TEST(ReflectionTest, ARequestForNothingIsInvalid) {
  EXPECT_EQ(Reflect(ServerReflectionRequest()).error_response().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace adamant::rpc
