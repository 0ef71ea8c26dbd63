// Files that safetensors and numpy have written (golden/, by generate.py), and files for them (read.py).
#include "client/tensor_files/tensor_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/tensor_files/safetensors.h"

namespace adamant::tensor_files {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

std::string Golden(const std::string& name) { return absl::StrCat(ADAMANT_GOLDEN_FILES, "/", name); }

std::string FolderForFiles() {
  const std::string folder = absl::StrCat(testing::TempDir(), "tensor_file_test-", getpid());
  std::filesystem::create_directories(folder);
  return folder;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string WriteFile(const std::string& name, const std::string& bytes) {
  const std::string path = absl::StrCat(FolderForFiles(), "/", name);
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

// The tensor of this name, and what is in it.
const FileTensor* Find(const TensorFile& file, const std::string& name) {
  for (const FileTensor& tensor : file.tensors()) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::vector<float> Elements(TensorFile* file, const std::string& name = "") {
  const FileTensor* const tensor = Find(*file, name);
  if (tensor == nullptr) {
    ADD_FAILURE() << "no tensor " << name;
    return {};
  }
  std::vector<float> elements(tensor->element_count);
  const absl::Status status = file->Read(tensor - file->tensors().data(), 0, absl::MakeSpan(elements));
  EXPECT_TRUE(status.ok()) << status;
  return elements;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

TEST(TensorFileTest, ReadsWhatSafetensorsWrites) {
  absl::StatusOr<TensorFile> file = TensorFile::Open(Golden("model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 8);
  EXPECT_THAT(file->metadata(), UnorderedElementsAre(Pair("made by", "a \"test\"\n")));
  EXPECT_THAT(Find(*file, "weight")->shape, ElementsAre(2, 3));
  EXPECT_THAT(Elements(&*file, "weight"), ElementsAre(0, 0.25, 0.5, 0.75, 1, 1.25));
  EXPECT_THAT(Elements(&*file, "bias"), ElementsAre(1.5, -2.5, 3.5));
  EXPECT_THAT(Find(*file, "scale")->shape, IsEmpty());
  EXPECT_THAT(Elements(&*file, "scale"), ElementsAre(0.125));
  EXPECT_THAT(Find(*file, "empty")->shape, ElementsAre(0, 4));
  EXPECT_THAT(Elements(&*file, "empty"), IsEmpty());
  EXPECT_THAT(Elements(&*file, "größe/層"), ElementsAre(7));
}

TEST(TensorFileTest, WidensSixteenBitsExactly) {
  absl::StatusOr<TensorFile> file = TensorFile::Open(Golden("model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const float infinite = HUGE_VALF;
  const std::vector<uint32_t> halves =
      Bits({0.0f, -0.0f, 0x1p-24f, 0x1p-14f, 0x1.554p-2f, -1.5f, 65504.0f, infinite, -infinite});
  EXPECT_EQ(Bits(Elements(&*file, "half")), halves);
  EXPECT_EQ(Bits(Elements(&*file, "bfloat")),
            Bits({0.0f, -0.0f, 0x1p-133f, 0x1p-126f, 0x1.56p-2f, -1.5f, 0x1.fep127f, infinite}));
  absl::StatusOr<TensorFile> array = TensorFile::Open(Golden("half.npy"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(Bits(Elements(&*array)), halves);
  absl::StatusOr<TensorFile> askew = TensorFile::Open(Golden("askew.safetensors"));
  ASSERT_TRUE(askew.ok()) << askew.status();
  EXPECT_THAT(Elements(&*askew, "a"), ElementsAre(1));
  EXPECT_THAT(Elements(&*askew, "b"), ElementsAre(2, 3));
}

TEST(TensorFileTest, ReadsWhatNumpyWrites) {
  const std::vector<std::pair<const char*, std::vector<int64_t>>> files = {
      {"matrix.npy", {2, 3}}, {"version2.npy", {2, 3}}, {"version3.npy", {2, 3}}, {"matrix.raw", {6}}};
  for (const auto& [name, shape] : files) {
    absl::StatusOr<TensorFile> file = TensorFile::Open(Golden(name));
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ(file->tensors().size(), 1);
    EXPECT_EQ(file->tensors()[0].shape, shape) << name;
    EXPECT_THAT(Elements(&*file), ElementsAre(0, 0.25, 0.5, 0.75, 1, 1.25)) << name;
  }
  absl::StatusOr<TensorFile> vector = TensorFile::Open(Golden("vector.npy"));
  ASSERT_TRUE(vector.ok()) << vector.status();
  EXPECT_THAT(vector->tensors()[0].shape, ElementsAre(2));
  EXPECT_THAT(Elements(&*vector), ElementsAre(1.5, -2.5));
  absl::StatusOr<TensorFile> scalar = TensorFile::Open(Golden("scalar.npy"));
  ASSERT_TRUE(scalar.ok()) << scalar.status();
  EXPECT_THAT(scalar->tensors()[0].shape, IsEmpty());
  EXPECT_THAT(Elements(&*scalar), ElementsAre(0.125));
  absl::StatusOr<TensorFile> empty = TensorFile::Open(Golden("empty.npy"));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT(empty->tensors()[0].shape, ElementsAre(0, 4));
  EXPECT_THAT(Elements(&*empty), IsEmpty());
  absl::StatusOr<TensorFile> none = TensorFile::Open(Golden("none.safetensors"));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(none->tensors(), IsEmpty());
}

TEST(TensorFileTest, ElementsOfOtherTypesAreAnErrorAndTheRestIsNot) {
  absl::StatusOr<TensorFile> file = TensorFile::Open(Golden("model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const FileTensor* const steps = Find(*file, "steps");
  EXPECT_FALSE(TensorFile::IsFloat(*steps));
  EXPECT_TRUE(TensorFile::IsFloat(*Find(*file, "bfloat")));
  std::vector<float> elements(steps->element_count);
  const absl::Status status = file->Read(steps - file->tensors().data(), 0, absl::MakeSpan(elements));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("'steps'"), HasSubstr("F32, F16 or BF16"), HasSubstr("I64")));
  absl::StatusOr<TensorFile> doubles = TensorFile::Open(Golden("double.npy"));
  ASSERT_TRUE(doubles.ok()) << doubles.status();
  EXPECT_THAT(doubles->Read(0, 0, {}).message(), HasSubstr("got F64"));
}

TEST(TensorFileTest, ReadsAnyPartOfATensorHoweverWideItsElementsAre) {
  constexpr int64_t kCount = 200'000;  // more than are widened at a time
  std::string bytes;
  std::vector<uint16_t> halves(kCount);
  for (int64_t i = 0; i < kCount; ++i) halves[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(float(i % 251)) >> 16);
  std::vector<SafetensorsTensor> entries = {{"bf16", "BF16", {kCount}}, {"f32", "F32", {2}}};
  const absl::StatusOr<std::string> header = FormatSafetensorsHeader(&entries, {});
  ASSERT_TRUE(header.ok()) << header.status();
  bytes.append(reinterpret_cast<const char*>(halves.data()), kCount * sizeof(uint16_t));
  bytes.append("\0\0\x80\x3f\0\0\0\x40", 8);
  const absl::StatusOr<TensorFile> file = TensorFile::Open(WriteFile("parts.safetensors", *header + bytes));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> part(150'000);
  ASSERT_TRUE(file->Read(0, 1000, absl::MakeSpan(part)).ok());
  for (size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], float((i + 1000) % 251)) << i;
  float last = 0;
  ASSERT_TRUE(file->Read(1, 1, absl::MakeSpan(&last, 1)).ok());
  EXPECT_EQ(last, 2);
}

TEST(TensorFileTest, FileThatOthersCutOffIsAnErrorThatNamesTheTensor) {
  const std::string path = WriteFile("cut_later.safetensors", ReadAll(Golden("model.safetensors")));
  const absl::StatusOr<TensorFile> file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(path, 8);
  for (size_t i = 0; i < file->tensors().size(); ++i) {
    const FileTensor& tensor = file->tensors()[i];
    if (!TensorFile::IsFloat(tensor) || tensor.element_count == 0) continue;
    std::vector<float> elements(tensor.element_count);
    const absl::Status status = file->Read(i, 0, absl::MakeSpan(elements));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(path), HasSubstr(absl::StrCat("'", tensor.name, "'")),
                                        HasSubstr("others have cut it off")));
  }
}

TEST(TensorFileTest, FilesThatAreNotWhatTheyShouldBeAreErrorsThatSayWhy) {
  const std::string matrix = ReadAll(Golden("matrix.npy"));
  const std::string model = ReadAll(Golden("model.safetensors"));
  ASSERT_FALSE(matrix.empty() || model.empty());
  const std::vector<std::pair<std::string, std::string>> files = {
      {Golden("columns.npy"), "column-major"},
      {Golden("big_endian.npy"), "got '>f4'"},
      {WriteFile("cut.npy", matrix.substr(0, matrix.size() - 1)), "elements of 4, 6, got 23"},
      {WriteFile("long.npy", matrix + "x"), "elements of 4, 6, got 25"},
      {WriteFile("cut_header.npy", matrix.substr(0, 40)), "cut off"},
      {WriteFile("nothing.npy", ""), "does not begin as a .npy file does"},
      {WriteFile("cut.raw", "12345"), "whole elements of 4 bytes, got 5"},
      {WriteFile("cut.safetensors", model.substr(0, model.size() - 1)), "cut off"},
      {WriteFile("long.safetensors", model + "x"), "too long"},
      {WriteFile("short.safetensors", model.substr(0, 7)), "at least 8 bytes, got 7"},
      {WriteFile("cut_header.safetensors", model.substr(0, 100)), "its header alone"},
      {WriteFile("wrong.safetensors", std::string("\x02\0\0\0\0\0\0\0[]", 10)), "does not begin with '{'"},
      {WriteFile("model.txt", "x"), "ends in .safetensors, .npy, .raw or .bin"},
      {FolderForFiles() + "/folder.npy", "regular file"}};
  std::filesystem::create_directories(FolderForFiles() + "/folder.npy");
  for (const auto& [path, error] : files) {
    const absl::Status status = TensorFile::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(path), HasSubstr(error)));
  }
  const absl::Status missing = TensorFile::Open("/no/such/file.npy").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), "/no/such/file.npy: No such file or directory");
}

// Fills every tensor with `elements`, in order.
void Fill(TensorFileWriter* writer, const std::vector<std::vector<float>>& elements) {
  for (size_t i = 0; i < elements.size(); ++i) {
    const absl::Span<float> span = writer->Elements(i);
    ASSERT_EQ(span.size(), elements[i].size());
    std::copy(elements[i].begin(), elements[i].end(), span.begin());
  }
}

TEST(TensorFileWriterTest, NumpyAndSafetensorsReadWhatItWrites) {
  const std::string folder = FolderForFiles();
  const std::vector<FileTensor> tensors = {{.name = "weight", .shape = {2, 3}},
                                           {.name = "größe/層", .shape = {0}},
                                           {.name = "empty", .shape = {0, 4}},
                                           {.name = "scalar", .shape = {}}};
  const std::vector<std::vector<float>> elements = {{0, 1, 2, 3, 4, 5}, {}, {}, {0.5}};
  const auto write = [&](const std::string& name, const std::vector<FileTensor>& of,
                         const std::vector<std::vector<float>>& with) {
    const std::string path = absl::StrCat(folder, "/", name);
    absl::StatusOr<TensorFileWriter> writer =
        TensorFileWriter::Create(path, *FormatOfPath(path), of, {{"format", "pt"}, {"quote", "\"\n"}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    Fill(&*writer, with);
    const absl::Status status = writer->Commit();
    ASSERT_TRUE(status.ok()) << status;
  };
  write("written.safetensors", tensors, elements);
  write("written.npy", {tensors[0]}, {elements[0]});
  write("scalar.npy", {tensors[3]}, {elements[3]});
  write("vector.npy", {{.name = "v", .shape = {3}}}, {{1, 2, 3}});
  write("written.raw", tensors, elements);
  const char* const python = std::getenv("ADAMANT_SAFETENSORS_PYTHON");
  const std::string command =
      absl::StrCat(python == nullptr ? "/usr/bin/python3" : python, " ", ADAMANT_READ_FILES, " ", folder);
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  // And so does this.
  absl::StatusOr<TensorFile> file = TensorFile::Open(folder + "/written.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(Elements(&*file, "weight"), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(TensorFileWriterTest, SixteenBitsAreRoundedToTheNearestAndWhatIsTooLargeIsCounted) {
  const std::vector<FileTensor> tensors = {{.name = "one", .shape = {1}}, {.name = "three", .shape = {3}}};
  const std::vector<std::vector<float>> elements = {{1}, {0x1.002p0f, 0x1.006p0f, -1e6f}};
  const std::string path = absl::StrCat(FolderForFiles(), "/narrow.safetensors");
  absl::StatusOr<TensorFileWriter> writer =
      TensorFileWriter::Create(path, FileFormat::kSafetensors, tensors, {}, "F16");
  ASSERT_TRUE(writer.ok()) << writer.status();
  Fill(&*writer, elements);
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(writer->overflowed(), 1);
  absl::StatusOr<TensorFile> file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Find(*file, "three")->dtype, "F16");
  EXPECT_THAT(Elements(&*file, "one"), ElementsAre(1));
  // Halfway between two, each goes to the one whose last bit is 0.
  EXPECT_THAT(Elements(&*file, "three"), ElementsAre(1, 0x1.008p0f, -std::numeric_limits<float>::infinity()));
  for (const auto& [format, dtype] : {std::pair(FileFormat::kNpy, "F16"), std::pair(FileFormat::kSafetensors, "I8")}) {
    EXPECT_THAT(TensorFileWriter::Create(path, format, {tensors[0]}, {}, dtype).status().message(),
                HasSubstr("expected elements of type F32"));
  }
}

TEST(TensorFileWriterTest, NobodyMeetsAFileThatIsNotComplete) {
  const std::string path = WriteFile("old.raw", "old");
  {
    absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(path, FileFormat::kRaw, {{.shape = {2}}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_EQ(ReadAll(path), "old");
  }
  EXPECT_EQ(ReadAll(path), "old");
  for (const auto& entry : std::filesystem::directory_iterator(FolderForFiles())) {
    EXPECT_FALSE(absl::StartsWith(entry.path().filename().string(), "old.raw.")) << entry.path();
  }
  absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(path, FileFormat::kRaw, {{.shape = {2}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  Fill(&*writer, {{1, 2}});
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(ReadAll(path).size(), 8);
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  const mode_t mask = umask(0);
  umask(mask);
  EXPECT_EQ(status.st_mode & 0777, 0666 & ~mask);
}

// Two elements, 1 and 2, written to `path`.
void WriteTwo(const std::string& path) {
  absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(path, FileFormat::kRaw, {{.shape = {2}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  writer->Elements(0)[0] = 1;
  writer->Elements(0)[1] = 2;
  const absl::Status status = writer->Commit();
  ASSERT_TRUE(status.ok()) << status;
}

TEST(TensorFileWriterTest, FileBehindALinkIsReplacedAndKeepsItsPermissions) {
  const std::string folder = ::testing::TempDir() + "/behind_a_link";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string file = folder + "/file.raw";
  const std::string link = folder + "/link.raw";
  std::ofstream(file) << "old";
  ASSERT_EQ(chmod(file.c_str(), 0600), 0);
  ASSERT_EQ(symlink("file.raw", link.c_str()), 0);
  WriteTwo(link);
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(std::filesystem::file_size(file), 8u);
  EXPECT_EQ(std::filesystem::status(file).permissions(), std::filesystem::perms(0600));
}

TEST(TensorFileWriterTest, PipeIsWrittenToAndNotReplaced) {
  const std::string path = ::testing::TempDir() + "/a_pipe";
  unlink(path.c_str());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  std::string received;
  std::thread reader([&] {
    std::ifstream file(path, std::ios::binary);
    received.assign(std::istreambuf_iterator<char>(file), {});
  });
  WriteTwo(path);
  reader.join();
  EXPECT_EQ(received, std::string("\0\0\x80\x3f\0\0\0\x40", 8));
  EXPECT_TRUE(std::filesystem::is_fifo(path));
}

TEST(TensorFileWriterTest, MetadataMayBeKnownLateIfThereIsRoomForThem) {
  const std::string path = absl::StrCat(FolderForFiles(), "/late.safetensors");
  absl::StatusOr<TensorFileWriter> writer = TensorFileWriter::Create(
      path, FileFormat::kSafetensors, {{.name = "w", .shape = {2}}}, {{"step", std::string(20, ' ')}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  Fill(&*writer, {{1, 2}});
  EXPECT_THAT(writer->ReplaceMetadata({{"step", std::string(40, '1')}}).message(),
              HasSubstr("the header has room for"));
  ASSERT_TRUE(writer->ReplaceMetadata({{"step", "7"}}).ok());
  ASSERT_TRUE(writer->Commit().ok());
  absl::StatusOr<TensorFile> file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(), UnorderedElementsAre(Pair("step", "7")));
  EXPECT_THAT(Elements(&*file, "w"), ElementsAre(1, 2));
}

TEST(TensorFileWriterTest, WhatMakesNoFileIsAnErrorAtOnce) {
  const auto error = [](const std::string& path, FileFormat format, const std::vector<FileTensor>& tensors) {
    return TensorFileWriter::Create(path, format, tensors).status();
  };
  const std::string path = absl::StrCat(FolderForFiles(), "/none");
  EXPECT_THAT(error(path, FileFormat::kNpy, {{.shape = {1}}, {.shape = {1}}}).message(),
              HasSubstr("one tensor, and here are 2"));
  EXPECT_THAT(error(path, FileFormat::kSafetensors, {{.name = "a", .shape = {}}, {.name = "a", .shape = {}}}).message(),
              HasSubstr("'a' is there twice"));
  EXPECT_THAT(error(path, FileFormat::kSafetensors, {{.name = "__metadata__", .shape = {}}}).message(),
              HasSubstr("reserved"));
  EXPECT_THAT(error(path, FileFormat::kRaw, {{.shape = {int64_t{1} << 61, 2}}}).message(), HasSubstr("larger"));
  EXPECT_EQ(error("/no/such/folder/file.raw", FileFormat::kRaw, {}).code(), absl::StatusCode::kNotFound);
  // More than a disk has: met before the first element is written.
  EXPECT_FALSE(error(path, FileFormat::kRaw, {{.shape = {int64_t{1} << 58}}}).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace adamant::tensor_files
