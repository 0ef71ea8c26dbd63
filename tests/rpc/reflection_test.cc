// What reflection says of this server, and of what there is not.
#include "server/rpc/reflection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"

namespace adamant::rpc {
namespace {

using ::grpc::reflection::v1::ServerReflectionRequest;
using ::grpc::reflection::v1::ServerReflectionResponse;

// Names of the files that came, in order. Each can be built from those before it.
std::vector<std::string> Files(const ServerReflectionResponse& response) {
  google::protobuf::DescriptorPool pool;
  std::vector<std::string> names;
  for (const std::string& bytes : response.file_descriptor_response().file_descriptor_proto()) {
    google::protobuf::FileDescriptorProto file;
    EXPECT_TRUE(file.ParseFromString(bytes));
    EXPECT_NE(pool.BuildFile(file), nullptr) << file.name();
    names.push_back(file.name());
  }
  return names;
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

TEST(ReflectionTest, EveryServiceThatItListsCanBeLookedUp) {
  ServerReflectionRequest list;
  list.set_list_services("");
  const ServerReflectionResponse services = Reflect(list);
  for (const auto& service : services.list_services_response().service()) {
    ServerReflectionRequest request;
    request.set_file_containing_symbol(service.name());
    EXPECT_THAT(Files(Reflect(request)), testing::Not(testing::IsEmpty())) << service.name();
  }
}

TEST(ReflectionTest, AFileComesWithAllThatItDependsOn) {
  ServerReflectionRequest request;
  request.set_file_by_filename("adamant/v1/service.proto");
  const std::vector<std::string> files = Files(Reflect(request));
  EXPECT_THAT(files, testing::IsSupersetOf({"adamant/v1/step.proto", "google/protobuf/timestamp.proto"}));
  EXPECT_EQ(files.back(), "adamant/v1/service.proto");
}

TEST(ReflectionTest, FindsWhatIsWithinAService) {
  ServerReflectionRequest request;
  request.set_file_containing_symbol("adamant.v1.OptimizerService.Step");
  EXPECT_EQ(Files(Reflect(request)).back(), "adamant/v1/service.proto");
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
