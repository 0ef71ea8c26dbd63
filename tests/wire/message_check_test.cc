// What is refused before it is built, and that nothing else is.
#include "proto/wire/message_check.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "adamant/v1/service.pb.h"
#include "proto/error/error.h"
#include "tests/wire/byte_buffers.h"

namespace adamant::wire {
namespace {

absl::Status Check(const std::string& bytes) {
  return CheckOnWire(InOneSlice(bytes), v1::CreateParameterSetRequest::descriptor());
}

v1::CreateParameterSetRequest Request() {
  v1::CreateParameterSetRequest request;
  request.set_if_exists(v1::IF_EXISTS_FAIL);
  request.mutable_spec()->set_name("set");
  (*request.mutable_spec()->mutable_labels())["key"] = "value";
  request.mutable_spec()->add_groups()->mutable_adam()->set_beta1(0.5);
  for (const char* name : {"a", "b"}) {
    v1::TensorSpec* tensor = request.mutable_spec()->add_tensors();
    tensor->set_name(name);
    tensor->add_shape(2);
    tensor->add_shape(3);
  }
  return request;
}

TEST(MessageCheckTest, TakesWhatTheParserTakes) {
  EXPECT_TRUE(Check("").ok());
  EXPECT_TRUE(Check(Request().SerializeAsString()).ok()) << Check(Request().SerializeAsString());
  // `shape`, unpacked: spec.tensors.shape.
  EXPECT_TRUE(Check(std::string("\x0a\x06\x12\x04\x10\x02\x10\x03", 8)).ok());
}

TEST(MessageCheckTest, NamesAFieldThatIsNotKnownWithItsPath) {
  v1::CreateParameterSetRequest request = Request();
  v1::TensorSpec* tensor = request.mutable_spec()->mutable_tensors(1);
  tensor->GetReflection()->MutableUnknownFields(tensor)->AddVarint(99, 1);
  const absl::Status status = Check(request.SerializeAsString());
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_UNKNOWN_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), "spec.tensors[1].99");
}

TEST(MessageCheckTest, AKnownNumberOfAnotherWireTypeIsNotKnown) {
  // if_exists, as bytes.
  EXPECT_EQ(GetErrorDetail(Check(std::string("\x12\x01x", 3))).reason(), v1::ERROR_REASON_UNKNOWN_FIELD);
}

TEST(MessageCheckTest, BoundsTheElementsOfRepeatedMessagesAndMaps) {
  v1::CreateParameterSetRequest request = Request();
  request.mutable_spec()->clear_tensors();
  for (int64_t i = 0; i < kMaxRepeated; ++i) request.mutable_spec()->add_tensors();
  EXPECT_TRUE(Check(request.SerializeAsString()).ok());
  request.mutable_spec()->add_tensors();
  EXPECT_EQ(GetErrorDetail(Check(request.SerializeAsString())).field(), "spec.tensors");

  request.mutable_spec()->clear_tensors();
  for (int64_t i = 0; i <= kMaxRepeated; ++i) (*request.mutable_spec()->mutable_labels())[absl::StrCat(i)] = "";
  EXPECT_EQ(GetErrorDetail(Check(request.SerializeAsString())).field(), "spec.labels");
}

TEST(MessageCheckTest, EveryPrefixIsRefusedOrTaken) {
  const std::string whole = Request().SerializeAsString();
  for (size_t size = 0; size < whole.size(); ++size) {
    v1::CreateParameterSetRequest parsed;
    const std::string prefix = whole.substr(0, size);
    const bool valid = parsed.ParseFromString(prefix);
    EXPECT_EQ(Check(prefix).ok(), valid) << size;
    EXPECT_EQ(CheckOnWire(prefix, v1::CreateParameterSetRequest::descriptor()).ok(), valid) << size;
  }
}

}  // namespace
}  // namespace adamant::wire
