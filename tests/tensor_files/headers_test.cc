// What .safetensors and .npy files may say of themselves, and what they may not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/tensor_files/npy.h"
#include "client/tensor_files/safetensors.h"

namespace adamant::tensor_files {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A tensor's entry.
std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return absl::StrCat("\"", name, R"(":{"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)", offsets,
                      "}");
}

std::string ErrorOf(const std::string& json, int64_t data_bytes) {
  const auto header = ParseSafetensorsHeader(json, data_bytes);
  if (header.ok()) return "no error";
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(header.status().message());
}

TEST(SafetensorsHeaderTest, TakesTensorsInAnyOrderAndSpacesBehindThem) {
  const auto header = ParseSafetensorsHeader(
      absl::StrCat("{", Entry("b", "F32", "[2]", "[4,12]"), ",", Entry("a", "F32", "[]", "[0,4]"),
                   R"(,"__metadata__":{"k":"v"},)", Entry("e", "I64", "[0]", "[12,12]"), "}   "),
      12);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_THAT(header->tensors[1].shape, ElementsAre(2));
  EXPECT_EQ(header->tensors[1].begin, 4);
  EXPECT_EQ(header->tensors[1].end, 12);
  EXPECT_EQ(header->tensors[2].name, "e");
  EXPECT_EQ(header->metadata.at("k"), "v");
}

TEST(SafetensorsHeaderTest, EveryTypeOfTheFormatHasItsSize) {
  for (const auto& [dtype, bytes] : std::vector<std::pair<const char*, int>>{
           {"BOOL", 8},    {"U8", 8},      {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F4", 4},
           {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"I16", 16}, {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},
           {"U32", 32},    {"F32", 32},    {"I64", 64}, {"U64", 64},    {"F64", 64},    {"C64", 64}}) {
    EXPECT_EQ(ErrorOf("{" + Entry("a", dtype, "[8]", absl::StrCat("[0,", bytes, "]")) + "}", bytes), "no error")
        << dtype;
  }
}

class HostileHeaderTest : public testing::TestWithParam<std::pair<std::string, std::string>> {};

INSTANTIATE_TEST_SUITE_P(
    Each, HostileHeaderTest,
    testing::Values(
        std::pair("{" + Entry("a", "F32", "[1]", "[0,4]") + "," + Entry("a", "F32", "[1]", "[4,8]") + "}",
                  "'a' is there twice"),
        std::pair(R"({"__metadata__":{},"__metadata__":{}})", "is there twice"),
        std::pair(R"({"__metadata__":{"k":"v","k":"w"}})", "the key 'k' of the metadata is there twice"),
        std::pair(R"({"__metadata__":{"k":1}})", "the metadata: expected strings, got a number"),
        std::pair(R"({"__metadata__":{"k":null}})", "expected strings, got null"),
        std::pair(R"({"__metadata__":"k"})", "the metadata: expected an object, got a string"),
        std::pair(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "dtype of tensor 'a' is"),
        std::pair(R"({"a":{"dtype":"F32","shape":[2]}})", "tensor 'a' has no data_offsets"),
        std::pair(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", "unknown field 'more'"),
        std::pair(R"({"a":[]})", "expected an object, got an array"),
        std::pair(R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", "a dtype: expected a string"),
        std::pair("{" + Entry("a", "F33", "[2]", "[0,8]") + "}", "'F33', which is unknown"),
        std::pair("{" + Entry("a", "F4", "[1]", "[0,1]") + "}", "ends within a byte"),
        std::pair("{" + Entry("a", "F32", "[-2]", "[0,8]") + "}", "expected whole numbers from 0"),
        std::pair("{" + Entry("a", "F32", "[2.0]", "[0,8]") + "}", "expected whole numbers from 0"),
        std::pair("{" + Entry("a", "F32", "[1e400]", "[0,8]") + "}", "no JSON"),
        std::pair("{" + Entry("a", "F32", "[18446744073709551615]", "[0,8]") + "}", "expected whole numbers"),
        std::pair("{" + Entry("a", "F32", "[99999999999999999999]", "[0,8]") + "}", "expected whole numbers"),
        std::pair("{" + Entry("a", "F32", "[[2]]", "[0,8]") + "}", "got an array"),
        std::pair("{" + Entry("a", "F32", "[4294967296,4294967296]", "[0,8]") + "}", "a shape that is no size"),
        std::pair("{" + Entry("a", "F32", "[2]", "[0,4]") + "}", "expected 8 bytes for its shape"),
        std::pair("{" + Entry("a", "F32", "[2]", "[8,0]") + "}", "expected 8 bytes for its shape"),
        std::pair("{" + Entry("a", "F32", "[2]", "[0]") + "}", "expected 2 numbers, got 1"),
        std::pair("{" + Entry("a", "F32", "[2]", "[0,8,8,8]") + "}", "expected 2 numbers, got 3"),
        std::pair("{" + Entry("a", "F32", "[1]", "[0,4]") + "," + Entry("b", "F32", "[1]", "[0,4]") + "}",
                  "within another one"),
        std::pair("{" + Entry("a", "F32", "[1]", "[4,8]") + "}", "behind a gap"),
        std::pair("{" + Entry("a", "F32", "[1]", "[0,4]") + "}", "too long: expected 4 bytes of tensors, got 8"),
        std::pair("{" + Entry("a", "F32", "[3]", "[0,12]") + "}", "cut off: expected 12 bytes of tensors, got 8"),
        std::pair(" {}", "does not begin with '{'"), std::pair("", "does not begin with '{'"),
        std::pair("{", "no JSON"), std::pair("{} {}", "no JSON"), std::pair("{\"a\xff\":{}}", "no JSON"),
        std::pair(std::string("{\"a\":") + std::string(100000, '['), "expected an object, got an array")));

TEST_P(HostileHeaderTest, IsAnErrorThatSaysWhy) {
  EXPECT_THAT(ErrorOf(GetParam().first, 8), HasSubstr(GetParam().second));
}

TEST(SafetensorsHeaderTest, LengthsThatCannotBeAreErrors) {
  const auto error = [](const std::string& prefix, int64_t file_bytes) {
    return std::string(ParseSafetensorsPrefix(prefix, file_bytes).status().message());
  };
  EXPECT_THAT(error(std::string("\2\0\0\0\0\0\0", 7), 7), HasSubstr("at least 8 bytes, got 7"));
  EXPECT_THAT(error(std::string(8, '\xff'), 1000), HasSubstr("at most 100000000 bytes, got 18446744073709551615"));
  EXPECT_THAT(error(std::string("\3\0\0\0\0\0\0\0", 8), 10), HasSubstr("cut off: it has 10 bytes"));
  EXPECT_EQ(*ParseSafetensorsPrefix(std::string("\3\0\0\0\0\0\0\0", 8), 11), 3);
}

TEST(SafetensorsHeaderTest, WhatIsFormattedIsParsedAndBeginsWhereItIsToldTo) {
  for (const int64_t alignment : {8, 64, 4096}) {
    std::vector<SafetensorsTensor> tensors = {{.name = "a\"\n", .dtype = "F32", .shape = {2, 3}},
                                              {.name = "", .dtype = "BF16", .shape = {3}},
                                              {.name = "größe/層", .dtype = "F32", .shape = {}}};
    const auto file = FormatSafetensorsHeader(&tensors, {{"k", "v\""}}, alignment);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->size() % alignment, 0);
    const auto size = static_cast<int64_t>(file->size());
    const auto length = ParseSafetensorsPrefix(*file, size);
    ASSERT_TRUE(length.ok()) << length.status();
    EXPECT_EQ(*length, size - 8);
    const auto header = ParseSafetensorsHeader(file->substr(8), 24 + 6 + 4);
    ASSERT_TRUE(header.ok()) << header.status();
    ASSERT_EQ(header->tensors.size(), 3);
    EXPECT_EQ(header->tensors[0].name, "a\"\n");
    EXPECT_EQ(header->tensors[1].begin, 24);
    EXPECT_EQ(header->tensors[2].name, "größe/層");
    EXPECT_EQ(header->metadata.at("k"), "v\"");
  }
  std::vector<SafetensorsTensor> no_utf8 = {{.name = "\xff", .dtype = "F32"}};
  EXPECT_THAT(FormatSafetensorsHeader(&no_utf8, {}).status().message(), HasSubstr("no UTF-8"));
}

std::string NpyFile(const std::string& dictionary, int version = 1) {
  std::string file = "\x93NUMPY";
  file += {static_cast<char>(version), 0, static_cast<char>(dictionary.size())};
  file.append(version == 1 ? 1 : 3, '\0');
  return file + dictionary;
}

TEST(NpyHeaderTest, TakesTheLiteralsThatNumpyHasWrittenInItsTime) {
  for (const char* shape : {"(2, 3)", "(2,3,)", "(2L, 3L)", "( 2 , 3 )"}) {
    const auto header =
        ParseNpyHeader(NpyFile(absl::StrCat("{'shape': ", shape, ", \"descr\": '<f4', 'fortran_order': False }\n")));
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->descr, "<f4");
    EXPECT_THAT(header->shape, ElementsAre(2, 3));
  }
  // A vector lies alike in both orders.
  EXPECT_TRUE(ParseNpyHeader(NpyFile("{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }")).ok());
}

TEST(NpyHeaderTest, WhatIsFormattedIsParsed) {
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{}, {5}, {2, 3}, {0, int64_t{1} << 60}}) {
    const std::string file = FormatNpyHeader(shape);
    EXPECT_EQ(file.size() % 64, 0);
    const auto header = ParseNpyHeader(file);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->shape, shape);
    EXPECT_EQ(header->data_offset, static_cast<int64_t>(file.size()));
  }
}

TEST(NpyHeaderTest, HostileHeadersAreErrorsThatSayWhy) {
  const std::vector<std::pair<std::string, std::string>> files = {
      {"", "does not begin as"},
      {"\x93NUMPY", "cut off"},
      {"\x93NUMPY\x01", "cut off"},
      {NpyFile("{}", 4), "expected 1 to 3, got 4"},
      {NpyFile("{}", 2).substr(0, 10), "cut off"},
      {NpyFile("{}").substr(0, 11), "cut off"},
      {NpyFile("[]"), "expected a dictionary"},
      {NpyFile("{'descr'"), "expected a key"},
      {NpyFile("{'descr': '<f4', 'descr': '<f4'}"), "'descr' is there twice"},
      {NpyFile("{'more': 1}"), "is none of its keys"},
      {NpyFile("{'descr': [('a', '<f4')]}"), "a plain type"},
      {NpyFile("{'fortran_order': None}"), "True or False"},
      {NpyFile("{'shape': (-1,)}"), "a tuple of numbers"},
      {NpyFile("{'shape': (99999999999999999999,)}"), "a tuple of numbers"},
      {NpyFile("{'shape': (1 2)}"), "a tuple of numbers"},
      {NpyFile("{'shape': (1,"), "a tuple of numbers"},
      {NpyFile("{'descr': '<f4' 'shape': ()}"), "a comma"},
      {NpyFile("{'descr': '<f4', 'shape': ()}"), "'fortran_order'"},
      {NpyFile("{'descr': '<f4', 'fortran_order': False, 'shape': ()} x"), "nothing behind"}};
  for (const auto& [file, error] : files) {
    EXPECT_THAT(ParseNpyHeader(file).status().message(), HasSubstr(error));
  }
}

}  // namespace
}  // namespace adamant::tensor_files
