// A program in C, with libadamant_c.so, against a real server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "adamant/v1/service.pb.h"
#include "adamant/v1/step.pb.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/program_output.h"
#include "tests/e2e/server_process.h"

namespace adamant::e2e {
namespace {

using ::testing::ElementsAre;
using ::testing::MatchesRegex;

std::string Hex(const google::protobuf::MessageLite& message) {
  return absl::BytesToHexString(message.SerializeAsString());
}

TEST(CTest, TrainsReadsWatchesAndIsToldWhatIsWrong) {
  ServerProcess server;
  v1::CreateParameterSetRequest create;
  create.mutable_spec()->set_name("w");
  create.mutable_spec()->set_initialization(v1::INITIALIZATION_ZEROS);
  v1::TensorSpec* const tensor = create.mutable_spec()->add_tensors();
  tensor->set_name("t");
  tensor->add_shape(3);
  v1::ParameterGroup* const group = create.mutable_spec()->add_groups();
  group->set_learning_rate(0.5);
  group->mutable_sgd();
  v1::StepHeader step;
  step.set_set("w");
  step.set_expected_step(0);
  v1::WriteHeader write;
  write.set_set("w");
  write.set_mode(v1::WRITE_MODE_PARAMETERS);
  v1::GetParameterSetRequest name;
  name.set_name("w");

  ChildProgram program({ADAMANT_C_CLIENT, server.address(), Hex(create), Hex(step), Hex(write), Hex(name)});

  EXPECT_EQ(program.Wait(), 0) << program.standard_error().AwaitEnd();
  EXPECT_THAT(
      Lines(program.standard_output().AwaitEnd()),
      ElementsAre(MatchesRegex("options: 3 3 .*max_attempts.*"), "connect: 0 0 , 0 bytes of details",
                  "waits: nobody 14", MatchesRegex("GetServerInfo: 14 14 .*127.0.0.1:1.*"),
                  "connect: 0 0 , 0 bytes of details", "CreateParameterSet: 0 0 , 0 bytes of details",
                  MatchesRegex("CreateParameterSet: 3 3 the 1 bytes are no adamant.v1.Create.*"),
                  MatchesRegex("NoSuchCall: 12 12 .*`NoSuchCall`.*"), "Step: 0 0 , 0 bytes of details",
                  "stepped: -0.5 1 -2", "Write: 0 0 , 0 bytes of details", "Read: 0 0 , 0 bytes of details",
                  "read: 8 16 32", "Watch: 0 0 , 0 bytes of details", "DeleteParameterSet: 0 0 , 0 bytes of details",
                  "events: 2, ended 1", MatchesRegex("GetParameterSet: 5 5 .*`w`.*, [1-9][0-9]* bytes of details")));
}

}  // namespace
}  // namespace adamant::e2e
