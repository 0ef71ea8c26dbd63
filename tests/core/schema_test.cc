// The layout of a set, and every limit of a specification's tensors.
#include "server/core/spec/schema.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "server/core/base/fingerprint.h"

namespace adamant::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::TensorSpec* AddTensor(v1::ParameterSetSpec* spec, const std::string& name, const std::vector<int64_t>& shape) {
  v1::TensorSpec* tensor = spec->add_tensors();
  tensor->set_name(name);
  tensor->mutable_shape()->Add(shape.begin(), shape.end());
  return tensor;
}

v1::ParameterGroup Group(const std::string& name) {
  v1::ParameterGroup group;
  group.set_name(name);
  return group;
}

absl::StatusOr<std::shared_ptr<const Schema>> Create(const v1::ParameterSetSpec& spec) {
  return Schema::Create(spec, {Group("default")});
}

void ExpectInvalid(const v1::ParameterSetSpec& spec, const std::string& field, const std::string& message) {
  const absl::Status status = Create(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_INVALID_FIELD);
  EXPECT_EQ(GetErrorDetail(status).field(), field);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(SchemaTest, TensorsLieInOrderEachAtAMultipleOfSixteen) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "w1", {16, 2});
  AddTensor(&spec, "b1", {17});
  AddTensor(&spec, "scale", {});
  AddTensor(&spec, "w2", {2, 3, 1});
  const auto schema = Create(spec);
  ASSERT_TRUE(schema.ok()) << schema.status();
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const Schema::Tensor& tensor : (*schema)->tensors()) ranges.emplace_back(tensor.begin, tensor.end);
  using Range = std::pair<int64_t, int64_t>;
  EXPECT_THAT(ranges, ElementsAre(Range(0, 32), Range(32, 49), Range(64, 65), Range(80, 86)));
  EXPECT_THAT((*schema)->sizes(), ElementsAre(32, 17, 1, 6));
  EXPECT_THAT((*schema)->tensors()[3].shape, ElementsAre(2, 3, 1));
  EXPECT_EQ((*schema)->tensors()[3].name, "w2");
  EXPECT_EQ((*schema)->flat_size(), 96);
  EXPECT_EQ((*schema)->parameter_count(), 56);
}

TEST(SchemaTest, TensorAtFindsTheTensorOfEveryIndexPaddingIncluded) {
  v1::ParameterSetSpec spec;
  for (int i = 0; i < 7; ++i) AddTensor(&spec, absl::StrCat("t", i), {5 * i + 1});
  const auto schema = *Create(spec);
  const auto tensors = schema->tensors();
  for (int i = 0; i < 7; ++i) {
    const int64_t next = i + 1 < 7 ? tensors[i + 1].begin : schema->flat_size();
    for (int64_t flat = tensors[i].begin; flat < next; ++flat) ASSERT_EQ(schema->TensorAt(flat), i) << flat;
  }
}

TEST(SchemaTest, TensorsAreOfTheGroupThatTheyNameOrOfTheFirst) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "a", {1});
  AddTensor(&spec, "b", {1})->set_group("biases");
  AddTensor(&spec, "c", {1})->set_group("weights");
  const std::vector<v1::ParameterGroup> groups = {Group("weights"), Group("biases")};
  const auto schema = Schema::Create(spec, groups);
  ASSERT_TRUE(schema.ok()) << schema.status();
  EXPECT_EQ((*schema)->tensors()[0].group, 0);
  EXPECT_EQ((*schema)->tensors()[1].group, 1);
  EXPECT_EQ((*schema)->tensors()[2].group, 0);
}

TEST(SchemaTest, AnUnknownGroupIsRefused) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "a", {1});
  AddTensor(&spec, "b", {1})->set_group("biases");
  ExpectInvalid(spec, "spec.tensors[1].group",
                "expected the name of one of `spec.groups`, got `biases` for tensor `b`");
}

TEST(SchemaTest, NumberOfTensors) {
  v1::ParameterSetSpec spec;
  ExpectInvalid(spec, "spec.tensors", "got 0");
  for (int i = 0; i < kMaxTensors; ++i) AddTensor(&spec, absl::StrCat("t", i), {1});
  EXPECT_TRUE(Create(spec).ok());
  AddTensor(&spec, "one more", {1});
  ExpectInvalid(spec, "spec.tensors", "expected 1 to 65536 tensors, got 65537");
}

TEST(SchemaTest, NamesOfTensors) {
  const std::string longest(kMaxTensorNameBytes, 'x');
  for (const std::string& name : {longest, std::string("layers.0/\xCE\xB2 \"quoted\"")}) {
    v1::ParameterSetSpec spec;
    AddTensor(&spec, name, {1});
    EXPECT_TRUE(Create(spec).ok()) << name;
  }
  const std::pair<std::string, std::string> invalid[] = {{"", "expected 1 to 512 bytes, got 0"},
                                                         {longest + "x", "expected 1 to 512 bytes, got 513"},
                                                         {"tab\t", "without control characters"},
                                                         {"c1 \xC2\x85", "without control characters"},
                                                         {"\xFF", "UTF-8"}};
  for (const auto& [name, message] : invalid) {
    v1::ParameterSetSpec spec;
    AddTensor(&spec, "fine", {1});
    AddTensor(&spec, name, {1});
    ExpectInvalid(spec, "spec.tensors[1].name", message);
  }
}

TEST(SchemaTest, NamesAreUnique) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "a", {1});
  AddTensor(&spec, "w", {1});
  AddTensor(&spec, "w", {1});
  ExpectInvalid(spec, "spec.tensors[2].name", "got `w`, the name of tensor 1");
}

TEST(SchemaTest, Shapes) {
  v1::ParameterSetSpec deepest;
  AddTensor(&deepest, "w", std::vector<int64_t>(kMaxRank, 2));
  EXPECT_TRUE(Create(deepest).ok());
  v1::ParameterSetSpec deeper;
  AddTensor(&deeper, "w", std::vector<int64_t>(kMaxRank + 1, 1));
  ExpectInvalid(deeper, "spec.tensors[0].shape", "at most 8 extents, got 9");

  v1::ParameterSetSpec negative;
  AddTensor(&negative, "w", {-1, -1});
  ExpectInvalid(negative, "spec.tensors[0].shape[0]", "expected 0 or more, got -1");
}

TEST(SchemaTest, SizesThatOverflowAreRefused) {
  constexpr int64_t kLimit = int64_t{1} << 53;
  v1::ParameterSetSpec largest;
  AddTensor(&largest, "w", {kLimit});
  ASSERT_TRUE(Create(largest).ok());
  EXPECT_EQ((*Create(largest))->flat_size(), kLimit);

  const std::vector<int64_t> invalid[] = {
      {kLimit + 1},    {INT64_MAX},    {int64_t{1} << 32, int64_t{1} << 32},   {INT64_MAX, INT64_MAX, 2},
      {3, kLimit / 2}, {0, INT64_MAX}, {int64_t{1} << 32, 0, int64_t{1} << 32}};
  for (const std::vector<int64_t>& shape : invalid) {
    v1::ParameterSetSpec spec;
    AddTensor(&spec, "w", shape);
    ExpectInvalid(spec, "spec.tensors[0].shape", "expected at most 9007199254740992 elements, got more in tensor `w`");
  }

  AddTensor(&largest, "b", {1});
  ExpectInvalid(largest, "spec.tensors[1].shape", "together");
}

TEST(SchemaTest, ExtentsOfZeroMakeTensorsWithoutElements) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "first", {0});
  AddTensor(&spec, "w", {3, 7});
  AddTensor(&spec, "none", {8, 0});
  AddTensor(&spec, "none too", std::vector<int64_t>(kMaxRank, 0));
  AddTensor(&spec, "b", {});
  AddTensor(&spec, "last", {0, 1 << 30});
  const auto schema = Create(spec);
  ASSERT_TRUE(schema.ok()) << schema.status();
  EXPECT_THAT((*schema)->sizes(), ElementsAre(0, 21, 0, 0, 1, 0));
  std::vector<int64_t> begins;
  for (const Schema::Tensor& tensor : (*schema)->tensors()) begins.push_back(tensor.begin);
  EXPECT_THAT(begins, ElementsAre(0, 0, 32, 32, 32, 48));
  EXPECT_EQ((*schema)->flat_size(), 48);
  EXPECT_EQ((*schema)->parameter_count(), 22);
  for (int64_t flat = 0; flat < 32; ++flat) EXPECT_EQ((*schema)->TensorAt(flat), 1) << flat;
  for (int64_t flat = 32; flat < 48; ++flat) EXPECT_EQ((*schema)->TensorAt(flat), 4) << flat;
}

TEST(SchemaTest, ASetMayHaveNoElementsAtAll) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "w", {0, 3});
  const auto schema = Create(spec);
  ASSERT_TRUE(schema.ok()) << schema.status();
  EXPECT_EQ((*schema)->flat_size(), 0);
  EXPECT_EQ((*schema)->parameter_count(), 0);
}

TEST(SchemaTest, NamesMayTakeAsMuchAsAMessageHolds) {
  v1::ParameterSetSpec spec;
  for (int i = 0; i < 8000; ++i) {
    std::string name = absl::StrCat(i);
    name.resize(kMaxTensorNameBytes, '-');
    AddTensor(&spec, name, {1});
  }
  ASSERT_GT(spec.ByteSizeLong(), size_t{4'000'000});
  const auto schema = Create(spec);
  ASSERT_TRUE(schema.ok()) << schema.status();
  EXPECT_GT((*schema)->MemoryBytes(), 8000 * kMaxTensorNameBytes);
}

// The values are part of the protocol: clients carry them from one server to another.
TEST(SchemaTest, FingerprintsNeverChange) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "w", {2, 3});
  AddTensor(&spec, "b", {});
  EXPECT_EQ((*Create(spec))->fingerprint(), 0x026D2714521439u);
}

// As JavaScript has to: whole numbers from 2^53 on are not all there.
TEST(SchemaTest, FingerprintsFitInADouble) {
  std::set<uint64_t> fingerprints;
  for (int i = 0; i < 10000; ++i) {
    v1::ParameterSetSpec spec;
    AddTensor(&spec, absl::StrCat("w", i), {i + 1});
    const uint64_t fingerprint = (*Create(spec))->fingerprint();
    ASSERT_GE(fingerprint, 1u);
    ASSERT_LT(fingerprint, uint64_t{1} << 53);
    ASSERT_TRUE(fingerprints.insert(fingerprint).second) << fingerprint;
  }
  // All bits are made use of.
  EXPECT_GT(*fingerprints.rbegin(), uint64_t{1} << 52);
}

TEST(SchemaTest, FingerprintsTellNamesShapesAndOrderApart) {
  v1::ParameterSetSpec specs[7];
  AddTensor(&specs[0], "a", {2, 3});
  AddTensor(&specs[0], "b", {4});
  AddTensor(&specs[1], "b", {4});
  AddTensor(&specs[1], "a", {2, 3});
  AddTensor(&specs[2], "a", {3, 2});
  AddTensor(&specs[2], "b", {4});
  AddTensor(&specs[3], "a", {6});
  AddTensor(&specs[3], "b", {4});
  AddTensor(&specs[4], "a", {2, 3});
  AddTensor(&specs[4], "c", {4});
  AddTensor(&specs[5], "a", {2, 3});
  AddTensor(&specs[6], "a", {2, 3});
  AddTensor(&specs[6], "b", {4, 1});
  std::vector<uint64_t> fingerprints;
  for (const v1::ParameterSetSpec& spec : specs) fingerprints.push_back((*Create(spec))->fingerprint());
  std::sort(fingerprints.begin(), fingerprints.end());
  EXPECT_EQ(std::unique(fingerprints.begin(), fingerprints.end()), fingerprints.end());
}

TEST(SchemaTest, FingerprintsDoNotDependOnGroups) {
  v1::ParameterSetSpec spec;
  AddTensor(&spec, "a", {2});
  const uint64_t before = (*Create(spec))->fingerprint();
  spec.mutable_tensors(0)->set_group("default");
  EXPECT_EQ((*Create(spec))->fingerprint(), before);
}

// Expected values from a second implementation.
TEST(FingerprintTest, IsTheFnv1aOfLengthsAndBytes) {
  Fingerprint fingerprint;
  EXPECT_EQ(fingerprint.value(), 0xCBF29CE484222325u);
  fingerprint.AddString("foobar");
  EXPECT_EQ(fingerprint.value(), 0xB277229A2D9D19F2u);
}

}  // namespace
}  // namespace adamant::core
