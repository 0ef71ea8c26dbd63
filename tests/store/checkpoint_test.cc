// Checkpoints come back to the bit, or not at all: whatever has become of their files, and wherever a disk fails.
#include "server/store/checkpoint.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/tensor_files/manifest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/error/error.h"
#include "tests/store/every_file_system.h"
#include "tests/store/simulated_file_system.h"

namespace adamant::store {
namespace {

using tensor_files::kManifestName;
using tensor_files::kOptimizerName;
using tensor_files::kParametersName;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

std::shared_ptr<const core::Schema> MakeSchema(const Shapes& shapes) {
  v1::ParameterSetSpec spec;
  for (const auto& [name, shape] : shapes) {
    v1::TensorSpec* tensor = spec.add_tensors();
    tensor->set_name(name);
    tensor->mutable_shape()->Add(shape.begin(), shape.end());
  }
  v1::ParameterGroup group;
  group.set_name("default");
  const auto schema = core::Schema::Create(spec, {group});
  EXPECT_TRUE(schema.ok()) << schema.status();
  return *schema;
}

const Shapes kSmall = {{"weight", {2, 3}}, {"größe/層", {17}},    {"empty", {0, 4}},
                       {"scalar", {}},     {"__metadata__", {1}}, {"quote\"\\", {2}}};
const std::vector<v1::Slot> kAdam = {v1::SLOT_PARAMETER, v1::SLOT_EXP_AVG, v1::SLOT_EXP_AVG_SQ};
const auto kAtOnce = [](int64_t) { return absl::OkStatus(); };

// As read_checkpoint.py has it.
float Readable(v1::Slot slot, size_t tensor, int64_t offset) {
  return static_cast<float>(1000 * tensor + 100 * slot + offset);
}

// Any bits: NaNs and infinities, too.
float AnyBits(v1::Slot slot, size_t tensor, int64_t offset) {
  const uint64_t mixed = (static_cast<uint64_t>(offset) * 8 + slot + tensor * 977) * 0x9E3779B97F4A7C15;
  return std::bit_cast<float>(static_cast<uint32_t>(mixed >> 32));
}

CheckpointInfo Info() {
  CheckpointInfo info;
  info.set = "run/größe";
  info.incarnation = (uint64_t{1} << 53) - 1;
  info.step = 7;
  info.create_time = absl::FromUnixNanos(1'700'000'000'123'456'789);
  info.description.set_name("run/größe");
  info.description.set_incarnation(info.incarnation);
  info.description.mutable_statistics();
  (*info.description.mutable_labels())["a"] = "\"</script>";
  info.description.add_groups()->mutable_adam()->set_beta1(0.1);
  return info;
}

// Tensors with values, and whoever asks for them and takes them back.
class Tensors {
 public:
  using Values = float (*)(v1::Slot, size_t tensor, int64_t offset);

  explicit Tensors(const Shapes& shapes, Values values = AnyBits) : schema_(MakeSchema(shapes)), values_(values) {}

  const core::Schema& schema() const { return *schema_; }

  absl::Status Write(FileSystem* file_system, const std::string& directory, absl::Span<const v1::Slot> slots = kAdam,
                     const CheckpointInfo& info = Info(), const std::function<absl::Status(int64_t)>& pace = kAtOnce,
                     int64_t* bytes = nullptr) const {
    std::pair<int, int64_t> next = {0, 0};
    const absl::StatusOr<int64_t> written = WriteCheckpoint(
        file_system, directory, info, *schema_, slots,
        [&](v1::Slot slot, int64_t begin, int64_t end, absl::FunctionRef<void(const float*, int64_t)> visit) {
          EXPECT_LE((end - begin) * sizeof(float), size_t{4} << 20);
          const std::pair<int, int64_t> here = {slot, begin};
          EXPECT_LE(next, here) << "asked for twice, or not in order";
          next = {slot, end};
          const auto tensor = static_cast<size_t>(schema_->TensorAt(begin));
          const core::Schema::Tensor& of = schema_->tensors()[tensor];
          EXPECT_LE(end, of.end) << "padding was asked for";
          // In runs that end anywhere.
          for (std::vector<float> run; begin < end; begin += static_cast<int64_t>(run.size())) {
            run.resize(std::min<int64_t>(end - begin, 10'007));
            for (size_t i = 0; i < run.size(); ++i) run[i] = values_(slot, tensor, begin - of.begin + i);
            visit(run.data(), static_cast<int64_t>(run.size()));
          }
        },
        pace);
    if (written.ok() && bytes != nullptr) *bytes = *written;
    return written.status();
  }

  // OK if the checkpoint has what was written. What it gives is never anything else.
  absl::Status Read(FileSystem* file_system, const std::string& directory, absl::Span<const v1::Slot> slots = kAdam,
                    CheckpointInfo* info = nullptr, int64_t* bytes = nullptr) const {
    absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(file_system, directory);
    if (!checkpoint.ok()) return checkpoint.status();
    if (info != nullptr) *info = checkpoint->info();
    if (bytes != nullptr) *bytes = checkpoint->bytes();
    for (const v1::Slot slot : slots) {
      int64_t taken = 0;
      std::pair<int, int64_t> next = {0, 0};
      absl::Status status =
          checkpoint->Read(slot, *schema_, [&](int tensor, int64_t offset, absl::Span<const float> elements) {
            const std::pair<int, int64_t> here = {tensor, offset};
            EXPECT_LE(next, here);
            EXPECT_FALSE(elements.empty());
            next = {tensor, offset + elements.size()};
            taken += elements.size();
            bool same = true;
            for (size_t i = 0; i < elements.size(); ++i) {
              same &=
                  std::bit_cast<uint32_t>(elements[i]) == std::bit_cast<uint32_t>(values_(slot, tensor, offset + i));
            }
            EXPECT_TRUE(same) << "tensor " << tensor << " from " << offset << " on";
            return absl::OkStatus();
          });
      if (!status.ok()) return status;
      EXPECT_EQ(taken, schema_->parameter_count());
    }
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<const core::Schema> schema_;
  Values values_;
};

void ExpectDamaged(const absl::Status& status, const std::string& what) {
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(GetErrorDetail(status).reason(), v1::ERROR_REASON_DAMAGED);
  EXPECT_THAT(std::string(status.message()), HasSubstr(what));
}

// As long as names may be, and in the file twice as long; as many as a set may have.
TEST(CheckpointTest, ASetWhoseHeaderWouldBeTooLongIsRefused) {
  Shapes shapes;
  for (int i = 0; i < 65536; ++i) {
    std::string name = absl::StrCat(i);
    name.resize(512, '"');
    shapes.push_back({std::move(name), {1}});
  }
  const auto schema = MakeSchema(shapes);
  EXPECT_EQ(CheckCanHaveCheckpoints(*schema, {v1::SLOT_PARAMETER, v1::SLOT_MOMENTUM_BUFFER}, "tensors"),
            absl::OkStatus());
  const absl::Status refused = CheckCanHaveCheckpoints(*schema, kAdam, "tensors");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorDetail(refused).reason(), v1::ERROR_REASON_TOO_LARGE);
  EXPECT_EQ(GetErrorDetail(refused).field(), "tensors");
}

class CheckpointOnEveryFileSystemTest : public OnEveryFileSystem {};
ADAMANT_ON_EVERY_FILE_SYSTEM(CheckpointOnEveryFileSystemTest);

TEST_P(CheckpointOnEveryFileSystemTest, ComesBackAsItWas) {
  const Tensors tensors(kSmall);
  int64_t written_bytes = 0;
  ASSERT_EQ(tensors.Write(file_system(), Path("c"), kAdam, Info(), kAtOnce, &written_bytes), absl::OkStatus());
  CheckpointInfo info;
  int64_t bytes = 0;
  ASSERT_EQ(tensors.Read(file_system(), Path("c"), kAdam, &info, &bytes), absl::OkStatus());
  const CheckpointInfo written = Info();
  EXPECT_EQ(info.set, written.set);
  EXPECT_EQ(info.incarnation, written.incarnation);
  EXPECT_EQ(info.step, written.step);
  EXPECT_THAT(info.update_counts, IsEmpty());
  EXPECT_EQ(info.create_time, written.create_time);
  EXPECT_EQ(info.description.DebugString(), written.description.DebugString());
  // A header of a sector and 27 elements; one of a sector and twice as many; and the manifest.
  EXPECT_GT(bytes, 2 * 4096 + 3 * 27 * 4);
  EXPECT_EQ(written_bytes, bytes);
  EXPECT_THAT(*file_system()->List(Path("c")),
              ElementsAre("MANIFEST.json", "optimizer.safetensors", "parameters.safetensors"));
  EXPECT_THAT(*file_system()->List(Folder()), Not(testing::Contains("c.new")));
}

TEST_P(CheckpointOnEveryFileSystemTest, TensorsLieAcrossBuffers) {
  // The first ends one element before a buffer does, were there no header; the next fills several.
  const Tensors tensors({{"a", {(1 << 20) - 1}}, {"b", {3, 1 << 20, 1}}, {"c", {0}}, {"d", {1025}}, {"e", {1}}});
  ASSERT_EQ(tensors.Write(file_system(), Path("c")), absl::OkStatus());
  EXPECT_EQ(tensors.Read(file_system(), Path("c")), absl::OkStatus());
}

TEST_P(CheckpointOnEveryFileSystemTest, HeadersMayBeLongerThanABuffer) {
  Shapes shapes;
  for (int i = 0; i < 9'000; ++i) shapes.push_back({absl::StrCat(std::string(450, 'x'), i), {i % 3}});
  const Tensors tensors(shapes);
  ASSERT_EQ(tensors.Write(file_system(), Path("c")), absl::OkStatus());
  EXPECT_EQ(tensors.Read(file_system(), Path("c")), absl::OkStatus());
}

TEST_P(CheckpointOnEveryFileSystemTest, ASetMayHaveNoOptimizerStateAndNoElements) {
  const std::vector<v1::Slot> parameters = {v1::SLOT_PARAMETER};
  for (const Shapes& shapes : {Shapes{{"w", {3}}}, Shapes{{"empty", {0}}, {"none", {2, 0}}}}) {
    const std::string path = Path(shapes[0].first);
    const Tensors tensors(shapes);
    ASSERT_EQ(tensors.Write(file_system(), path, parameters), absl::OkStatus());
    EXPECT_EQ(tensors.Read(file_system(), path, parameters), absl::OkStatus());
    EXPECT_THAT(*file_system()->List(path), ElementsAre("MANIFEST.json", "parameters.safetensors"));
    ExpectDamaged(tensors.Read(file_system(), path, {v1::SLOT_EXP_AVG}), "optimizer.safetensors");
  }
}

TEST_P(CheckpointOnEveryFileSystemTest, IsReadToItsEndWhenItIsRemovedMeanwhile) {
  const Tensors tensors(kSmall);
  ASSERT_EQ(tensors.Write(file_system(), Path("c")), absl::OkStatus());
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(file_system(), Path("c"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ(file_system()->RemoveAll(Path("c")), absl::OkStatus());
  int taken = 0;
  const absl::Status status =
      checkpoint->Read(v1::SLOT_EXP_AVG_SQ, tensors.schema(), [&](int, int64_t, absl::Span<const float> elements) {
        taken += static_cast<int>(elements.size());
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(taken, 27);
}

TEST(CheckpointTest, PythonReadsIt) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/c";
  ASSERT_EQ(Tensors(kSmall, Readable).Write(PosixFileSystem(), path), absl::OkStatus());
  const char* const python = std::getenv("ADAMANT_SAFETENSORS_PYTHON");
  const std::string command =
      absl::StrCat(python == nullptr ? "/usr/bin/python3" : python, " ", ADAMANT_READ_CHECKPOINT, " ", path);
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

TEST(CheckpointTest, KeepsHowOftenEachTensorWasUpdated) {
  SimulatedFileSystem disk;
  const Tensors tensors({{"a", {1}}, {"b", {1}}});
  CheckpointInfo info = Info();
  info.update_counts = {7, (int64_t{1} << 53) + 1};
  ASSERT_EQ(tensors.Write(&disk, "/c", kAdam, info), absl::OkStatus());
  CheckpointInfo read;
  ASSERT_EQ(tensors.Read(&disk, "/c", kAdam, &read), absl::OkStatus());
  EXPECT_EQ(read.update_counts, info.update_counts);

  info.update_counts.push_back(1);
  ASSERT_EQ(tensors.Write(&disk, "/d", kAdam, info), absl::OkStatus());
  ExpectDamaged(tensors.Read(&disk, "/d"), "/d/MANIFEST.json");
}

TEST(CheckpointTest, NamesThatTheFormatKeepsForItselfStayApart) {
  SimulatedFileSystem disk;
  const Tensors tensors({{"__metadata__", {1}},
                         {"__metadata___", {1}},
                         {"__metadata____", {2}},
                         {"__metadata__x", {3}},
                         {"exp_avg/__metadata__", {4}},
                         {"__metadata__ ", {5}}});
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  EXPECT_EQ(tensors.Read(&disk, "/c"), absl::OkStatus());
}

TEST(CheckpointTest, TensorsAreFoundByNameAndShape) {
  SimulatedFileSystem disk;
  const Tensors tensors({{"a", {2, 3}}, {"b", {4}}, {"c", {0}}}, Readable);
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(&disk, "/c");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::map<int, std::vector<float>> taken;
  auto take = [&](int tensor, int64_t, absl::Span<const float> elements) {
    taken[tensor].assign(elements.begin(), elements.end());
    return absl::OkStatus();
  };
  // In another order, and not all.
  ASSERT_EQ(checkpoint->Read(v1::SLOT_EXP_AVG, *MakeSchema({{"b", {4}}, {"a", {2, 3}}}), take), absl::OkStatus());
  EXPECT_THAT(taken[0], ElementsAre(1200, 1201, 1202, 1203));
  EXPECT_THAT(taken[1], ElementsAre(200, 201, 202, 203, 204, 205));

  ExpectDamaged(checkpoint->Read(v1::SLOT_PARAMETER, *MakeSchema({{"a", {3, 2}}}), take), "/c/parameters.safetensors");
  ExpectDamaged(checkpoint->Read(v1::SLOT_PARAMETER, *MakeSchema({{"c", {0, 1}}}), take), "`c`");
  ExpectDamaged(checkpoint->Read(v1::SLOT_EXP_AVG, *MakeSchema({{"x", {}}}), take), "`exp_avg/x`");
  ExpectDamaged(checkpoint->Read(v1::SLOT_MOMENTUM_BUFFER, tensors.schema(), take), "`momentum_buffer/a`");
  const absl::Status full = absl::ResourceExhaustedError("full");
  EXPECT_EQ(checkpoint->Read(v1::SLOT_PARAMETER, tensors.schema(),
                             [&](int, int64_t, absl::Span<const float>) { return full; }),
            full);
}

TEST(CheckpointTest, NoFlippedBitGoesUnseen) {
  SimulatedFileSystem disk;
  const Tensors tensors(kSmall);
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  for (const char* const name : {kManifestName, kParametersName, kOptimizerName}) {
    const std::string path = absl::StrCat("/c/", name);
    const bool all_bits = name == kManifestName;
    for (int64_t byte = 0; byte < disk.SizeOf(path); ++byte) {
      for (int64_t bit = all_bits ? 0 : byte % 8; bit <= (all_bits ? 7 : byte % 8); ++bit) {
        disk.FlipBit(path, byte * 8 + bit);
        const absl::Status status = tensors.Read(&disk, "/c");
        EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << path << " byte " << byte << " bit " << bit;
        EXPECT_THAT(std::string(status.message()), HasSubstr(path));
        disk.FlipBit(path, byte * 8 + bit);
      }
    }
  }
  EXPECT_EQ(tensors.Read(&disk, "/c"), absl::OkStatus());
}

TEST(CheckpointTest, ATensorThatIsDamagedIsNamedAndOthersAreNot) {
  SimulatedFileSystem disk;
  // The end of the first is read with the beginning of the second.
  const Shapes shapes = {{"a", {1 << 20}}, {"b", {1 << 20}}};
  ASSERT_EQ(Tensors(shapes).Write(&disk, "/c", {v1::SLOT_PARAMETER}), absl::OkStatus());
  disk.FlipBit("/c/parameters.safetensors", (int64_t{4096} + (6 << 20)) * 8);
  ExpectDamaged(Tensors(shapes).Read(&disk, "/c", {v1::SLOT_PARAMETER}), "in tensor `b`");
  EXPECT_EQ(Tensors({shapes[0]}).Read(&disk, "/c", {v1::SLOT_PARAMETER}), absl::OkStatus());
}

TEST(CheckpointTest, FilesOfAnotherSizeAreFound) {
  SimulatedFileSystem disk;
  const Tensors tensors({{"a", {3}}});
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  for (const char* const name : {kManifestName, kParametersName, kOptimizerName}) {
    const std::string path = absl::StrCat("/c/", name);
    const std::string contents = *ReadFile(&disk, path, 1 << 20);
    const auto size = static_cast<int64_t>(contents.size());
    const absl::StatusOr<std::unique_ptr<File>> file = disk.Open(path, FileSystem::Access::kBuffered);
    ASSERT_TRUE(file.ok()) << file.status();
    for (int64_t cut = 0; cut <= size + 1; ++cut) {
      if (cut == size) continue;
      ASSERT_EQ(SimulatedFileSystem::Resize(file->get(), cut), absl::OkStatus());
      ExpectDamaged(tensors.Read(&disk, "/c"), path);
    }
    ASSERT_EQ(SimulatedFileSystem::Resize(file->get(), 0), absl::OkStatus());
    ASSERT_EQ((*file)->Write(0, Bytes(contents)), absl::OkStatus());
    ASSERT_EQ(tensors.Read(&disk, "/c"), absl::OkStatus());
  }
}

TEST(CheckpointTest, MissingFilesAreNamed) {
  SimulatedFileSystem disk;
  const Tensors tensors(kSmall);
  EXPECT_EQ(tensors.Read(&disk, "/c").code(), absl::StatusCode::kNotFound);
  for (const char* const name : {kManifestName, kParametersName, kOptimizerName}) {
    const std::string directory = absl::StrCat("/without_", name);
    ASSERT_EQ(tensors.Write(&disk, directory), absl::OkStatus());
    ASSERT_EQ(disk.Remove(absl::StrCat(directory, "/", name)), absl::OkStatus());
    ExpectDamaged(tensors.Read(&disk, directory), absl::StrCat(directory, "/", name, " is missing"));
  }
}

TEST(CheckpointTest, AnErrorOfPaceEndsTheWrite) {
  SimulatedFileSystem disk;
  const Tensors tensors({{"a", {3 << 20}}});
  const std::vector<v1::Slot> slots = {v1::SLOT_PARAMETER, v1::SLOT_MOMENTUM_BUFFER};
  int calls = 0;
  int64_t bytes = 0;
  auto pace = [&](int64_t more) {
    ++calls;
    bytes += more;
    EXPECT_LE(more, 4 << 20);
    return absl::OkStatus();
  };
  ASSERT_EQ(tensors.Write(&disk, "/c", slots, Info(), pace), absl::OkStatus());
  EXPECT_EQ(bytes, 2 * (4096 + (12 << 20)));
  for (int last = 0; last < calls; ++last) {
    int left = last;
    auto stop = [&](int64_t) { return left-- > 0 ? absl::OkStatus() : absl::CancelledError("enough"); };
    EXPECT_EQ(tensors.Write(&disk, "/d", slots, Info(), stop), absl::CancelledError("enough"));
    EXPECT_EQ(left, -1) << "it was asked again";
    EXPECT_THAT(*disk.List("/"), ElementsAre("c"));
  }
}

TEST(CheckpointTest, AWriteThatFailsLeavesNothingOfThatName) {
  const Tensors tensors(kSmall);
  SimulatedFileSystem good;
  const int64_t before = good.calls();
  ASSERT_EQ(tensors.Write(&good, "/c"), absl::OkStatus());
  const int64_t calls = good.calls() - before;
  ASSERT_GT(calls, 10);
  for (const auto fault : {SimulatedFileSystem::Fault::kIoError, SimulatedFileSystem::Fault::kNoSpace}) {
    int failed = 0;
    for (int64_t call = 1; call <= calls; ++call) {
      SimulatedFileSystem disk;
      disk.FailCall(disk.calls() + call, fault);
      const absl::Status status = tensors.Write(&disk, "/c");
      const bool out_of_space = fault == SimulatedFileSystem::Fault::kNoSpace;
      if (status.ok()) {
        EXPECT_TRUE(out_of_space) << "call " << call << " failed, and nobody minded";
        continue;
      }
      ++failed;
      EXPECT_EQ(status.code(), out_of_space ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal)
          << status;
      EXPECT_THAT(*disk.List("/"), Not(testing::Contains("c")));
      // After a power cut, too, what has the name is whole.
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const std::unique_ptr<SimulatedFileSystem> cut = disk.PowerCut(seed);
        const absl::Status after = tensors.Read(cut.get(), "/c");
        EXPECT_TRUE(after.ok() || absl::IsNotFound(after)) << "call " << call << ": " << after;
      }
      ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus()) << "call " << call;
      EXPECT_EQ(tensors.Read(&disk, "/c"), absl::OkStatus());
    }
    EXPECT_GT(failed, 5);
  }
}

TEST(CheckpointTest, WhatIsWrittenSurvivesAPowerCut) {
  SimulatedFileSystem disk;
  const Tensors tensors(kSmall);
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  for (uint64_t seed = 0; seed < 100; ++seed) {
    EXPECT_EQ(tensors.Read(disk.PowerCut(seed).get(), "/c"), absl::OkStatus()) << "seed " << seed;
  }
}

TEST(CheckpointTest, WhatIsBeingWrittenHasNoNameAfterAPowerCut) {
  SimulatedFileSystem disk;
  auto cut = [&](int64_t) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      EXPECT_THAT(*disk.PowerCut(seed)->List("/"), Not(testing::Contains("c")));
    }
    return absl::OkStatus();
  };
  EXPECT_EQ(Tensors(kSmall).Write(&disk, "/c", kAdam, Info(), cut), absl::OkStatus());
}

TEST(CheckpointTest, WhatAnEarlierWriteHasLeftIsReplaced) {
  SimulatedFileSystem disk;
  ASSERT_EQ(disk.MakeDirectory("/c.new"), absl::OkStatus());
  ASSERT_TRUE(disk.Create("/c.new/other", FileSystem::Access::kBuffered).ok());
  const Tensors tensors(kSmall);
  ASSERT_EQ(tensors.Write(&disk, "/c"), absl::OkStatus());
  EXPECT_EQ(tensors.Read(&disk, "/c"), absl::OkStatus());
  EXPECT_THAT(*disk.List("/c"), testing::SizeIs(3));
}

}  // namespace
}  // namespace adamant::store
