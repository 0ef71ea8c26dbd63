// What a manifest may say, and what it says of a version that is yet to come.
#include "client/tensor_files/manifest.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/tensor_files/checksum.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace adamant::tensor_files {
namespace {

using ::testing::HasSubstr;

constexpr char kGood[] = R"({"format":1,"set":"s","incarnation":"5","step":"9","create_time":"2026-01-02T03:04:05Z",)"
                         R"("files":[{"name":"parameters.safetensors","bytes":"1048577","crc32c":[1,4294967295]},)"
                         R"({"name":"optimizer.safetensors","bytes":"0"}]})";

// A whole file about this object, as if it had been written so.
std::string Whole(const std::string& json) {
  return absl::StrFormat("{\"crc32c\": \"%08x\", \"manifest\": %s}\n", Checksum(json), json);
}

// What becomes of the good one with something else in some place.
absl::Status Changed(const std::string& from, const std::string& to) {
  const std::string json = absl::StrReplaceAll(kGood, {{from, to}});
  EXPECT_NE(json, kGood) << from;
  return ParseManifest(Whole(json)).status();
}

void ExpectDamaged(const absl::Status& status) { EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status; }

TEST(ManifestTest, IsWrittenAsItIsRead) {
  const auto manifest = ParseManifest(Whole(kGood));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->step(), 9);
  EXPECT_EQ(manifest->incarnation(), 5);
  EXPECT_EQ(manifest->files(0).bytes(), 1048577);
  EXPECT_THAT(manifest->files(0).crc32c(), testing::ElementsAre(1, 4294967295));
  const auto text = FormatManifest(*manifest);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto again = ParseManifest(*text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), manifest->SerializeAsString());
}

TEST(ManifestTest, NumbersAreExact) {
  CheckpointManifest manifest = *ParseManifest(Whole(kGood));
  manifest.set_step(INT64_MAX);
  manifest.set_incarnation(UINT64_MAX);
  const auto read = ParseManifest(*FormatManifest(manifest));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->step(), INT64_MAX);
  EXPECT_EQ(read->incarnation(), UINT64_MAX);
}

TEST(ManifestTest, StepZeroIsAStep) {
  CheckpointManifest manifest = *ParseManifest(Whole(kGood));
  manifest.set_step(0);
  manifest.set_incarnation(0);
  EXPECT_TRUE(ParseManifest(*FormatManifest(manifest)).ok());
}

TEST(ManifestTest, FieldsOfLaterVersionsAreLeftOut) {
  EXPECT_TRUE(Changed("\"set\"", "\"later\":[{\"a\":1}],\"set\"").ok());
}

TEST(ManifestTest, ALaterFormatIsRefused) {
  const absl::Status status = Changed("\"format\":1", "\"format\":2");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("format 2"));
  // Whatever else it has.
  EXPECT_EQ(ParseManifest(Whole(R"({"format":2,"step":{"of":"another kind"}})")).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ManifestTest, WhatIsMissingOrImpossibleIsDamage) {
  ExpectDamaged(Changed("\"format\":1,", ""));
  ExpectDamaged(Changed("\"format\":1", "\"format\":-1"));
  ExpectDamaged(Changed("\"format\":1", "\"format\":{}"));
  ExpectDamaged(Changed("\"step\":\"9\",", ""));
  ExpectDamaged(Changed("\"step\":\"9\"", "\"step\":\"-1\""));
  ExpectDamaged(Changed("\"step\":\"9\"", "\"step\":\"9223372036854775808\""));
  ExpectDamaged(Changed("\"incarnation\":\"5\",", ""));
  ExpectDamaged(Changed("2026-01-02T03:04:05Z", "soon"));
  ExpectDamaged(Changed("\"create_time\":\"2026-01-02T03:04:05Z\",", ""));
  ExpectDamaged(Changed("\"set\"", "\"update_counts\":[\"-1\"],\"set\""));
  ExpectDamaged(Changed("\"set\"", "\"tensor_groups\":[0],\"set\""));
  ExpectDamaged(Changed("\"set\"", R"("description":{"groups":[{}]},"tensor_groups":[-1],"set")"));
  ExpectDamaged(ParseManifest(Whole("")).status());
  ExpectDamaged(ParseManifest(Whole("[]")).status());
  ExpectDamaged(ParseManifest(Whole("{}")).status());
  ExpectDamaged(ParseManifest(Whole(std::string(100'000, '['))).status());
  ExpectDamaged(ParseManifest(Whole(absl::StrCat(R"({"description":)", std::string(100'000, '{')))).status());
}

TEST(ManifestTest, FilesAreThoseThatThereCanBeAndHaveTheirChecksums) {
  ExpectDamaged(Changed("parameters.safetensors", "../parameters.safetensors"));
  ExpectDamaged(Changed("optimizer.safetensors", "parameters.safetensors"));
  ExpectDamaged(Changed("[1,4294967295]", "[1]"));
  ExpectDamaged(Changed("[1,4294967295]", "[1,2,3]"));
  ExpectDamaged(Changed("\"1048577\"", "\"9223372036854775807\""));
  ExpectDamaged(Changed("\"1048577\"", "\"-1\""));
  ExpectDamaged(Changed("\"files\"", "\"other\""));
}

TEST(ManifestTest, WhatIsAroundItIsExact) {
  const std::string good = Whole(kGood);
  ASSERT_TRUE(ParseManifest(good).ok());
  for (size_t size = 0; size < good.size(); ++size) ExpectDamaged(ParseManifest(good.substr(0, size)).status());
  ExpectDamaged(ParseManifest(good + " ").status());
  ExpectDamaged(ParseManifest(" " + good).status());
  ExpectDamaged(ParseManifest(absl::StrReplaceAll(good, {{"\"set\":\"s\"", "\"set\":\"t\""}})).status());
}

TEST(ManifestTest, WhatMakesNoManifestIsNotWritten) {
  CheckpointManifest manifest = *ParseManifest(Whole(kGood));
  manifest.mutable_create_time()->set_seconds(INT64_MAX);
  EXPECT_EQ(FormatManifest(manifest).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace adamant::tensor_files
