// adamant, the program, against the real server, both as their users run them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/tensor_files/manifest.h"
#include "client/tensor_files/tensor_file.h"
#include "tests/e2e/program_output.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

struct Ended {
  int code;
  std::string output;
  std::string error;

  // What it printed with --json.
  json Json() const {
    json parsed = json::parse(output, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(parsed.is_discarded()) << output;
    return parsed;
  }
};

std::string Golden(const std::string& name) { return absl::StrCat(ADAMANT_GOLDEN_FILES, "/", name); }

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class CliTest : public testing::Test {
 protected:
  explicit CliTest(const std::vector<std::string>& flags = {}) : server_(flags) {
    std::filesystem::create_directories(folder_);
  }
  ~CliTest() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> Command(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {ADAMANT_CLI, absl::StrCat("--target=", target_)});
    return arguments;
  }
  // Another server than the one that each test has.
  void Aim(const ServerProcess& server) { target_ = server.address(); }
  Ended Run(const std::vector<std::string>& arguments) const {
    ChildProgram program(Command(arguments));
    const int code = program.Wait();
    return {code, program.standard_output().AwaitEnd(), program.standard_error().AwaitEnd()};
  }
  // The same for what has to succeed.
  std::string Do(const std::vector<std::string>& arguments) const {
    const Ended ended = Run(arguments);
    EXPECT_EQ(ended.code, 0) << arguments[0] << ": " << ended.error;
    return ended.output;
  }
  json DoJson(std::vector<std::string> arguments) const {
    arguments.push_back("--json");
    return Ended{0, Do(arguments), ""}.Json();
  }
  // Values of a tensor, as the program prints them.
  std::vector<float> Values(const std::string& set, const std::string& tensor,
                            const std::string& slot = "parameter") const {
    const json read = DoJson({"read", set, tensor, "--slot", slot});
    std::vector<float> values;
    for (const json& value : read["tensors"][0]["values"]) values.push_back(value.get<float>());
    return values;
  }

  std::string Path(const std::string& name) const { return absl::StrCat(folder_, "/", name); }
  // A file of fp32 elements.
  std::string RawFile(const std::string& name, const std::vector<float>& values) const {
    std::ofstream file(Path(name), std::ios::binary);
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    return Path(name);
  }

  const std::string folder_ = absl::StrCat(testing::TempDir(), "cli_test-", getpid());
  ServerProcess server_;
  std::string target_ = server_.address();
};

TEST_F(CliTest, CreatesASetOfAModelsTensorsAndWritesThemWidenedExactly) {
  const json created =
      DoJson({"create", "demo", "--from", Golden("mixed.safetensors"), "--skip-other-types", "--optimizer=adamw",
              "--lr=3e-4", "--schedule=cosine", "--warmup=10", "--total-steps=100", "--label=team=a"});
  EXPECT_TRUE(created["created"]);
  const json set = DoJson({"get", "demo", "--tensors"});
  EXPECT_EQ(set["parameter_set"]["state"], "PARAMETER_SET_STATE_READY");
  EXPECT_EQ(set["parameter_set"]["incarnation"], created["parameter_set"]["incarnation"]);
  const json& group = set["parameter_set"]["groups"][0];
  EXPECT_EQ(group["learning_rate"], 3e-4);
  EXPECT_EQ(group["adam"]["decoupled_weight_decay"], true);
  EXPECT_EQ(group["adam"]["weight_decay"], 0.01);
  EXPECT_EQ(group["schedule"]["warmup_steps"], "10");
  EXPECT_EQ(group["schedule"]["cosine"]["steps"], "90");
  EXPECT_EQ(set["parameter_set"]["labels"]["team"], "a");
  EXPECT_THAT(set["tensors"], SizeIs(4));
  EXPECT_THAT(Values("demo", "weight"), ElementsAre(0, 0.25, 0.5, 0.75, 1, 1.25));
  EXPECT_THAT(Values("demo", "half"), ElementsAre(0, -0.0f, 0x1p-24f, 0x1p-14f, 0x1.554p-2f, -1.5, 65504));
  EXPECT_THAT(Values("demo", "bfloat"), ElementsAre(0, -0.0f, 0x1p-133f, 0x1p-126f, 0x1.56p-2f, -1.5));
  EXPECT_THAT(Values("demo", "scale"), ElementsAre(0.125));
  // Again, with what it has: another model of the same tensors is no other set.
  EXPECT_EQ(Run({"create", "demo", "--from", Golden("mixed.safetensors"), "--skip-other-types"}).code, 4);
}

TEST_F(CliTest, ModelThatCannotBeWrittenLeavesNoSet) {
  // Its infinities are no parameters.
  const Ended ended = Run({"create", "demo", "--from", Golden("model.safetensors"), "--skip-other-types"});
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.error, HasSubstr("VALUE_OUT_OF_RANGE"));
  const Ended other = Run({"create", "demo", "--from", Golden("model.safetensors")});
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.error, AllOf(HasSubstr("'steps'"), HasSubstr("--skip-other-types")));
  EXPECT_THAT(DoJson({"list"})["parameter_sets"], IsEmpty());
}

TEST_F(CliTest, FileThatIsCutOffWhileItIsReadIsNamedAndLeavesNoSet) {
  const std::string model = Path("model.safetensors"), state = Path("state.safetensors");
  Do({"create", "s", "--tensor=w=1000000"});
  Do({"export", "s", state, "--optimizer-state"});
  Do({"export", "s", model});
  const std::vector<std::vector<std::string>> commands = {
      {"create", "new", "--from", model}, {"import", "new", model, "--create"}, {"import", "new", state, "--create"}};
  for (size_t i = 0; i < commands.size(); ++i) {
    // Whoever waits for the server has opened the file.
    const std::string file = commands[i][0] == "create" ? commands[i][3] : commands[i][2];
    const std::string bytes = ReadFile(file);
    const std::string target = absl::StrCat("unix:", Path(absl::StrCat("server", i)));
    std::vector<std::string> command = {ADAMANT_CLI, absl::StrCat("--target=", target), "--timeout=60s"};
    command.insert(command.end(), commands[i].begin(), commands[i].end());
    ChildProgram program(command);
    ASSERT_TRUE(program.standard_error().AwaitLine("waiting").has_value());
    std::filesystem::resize_file(file, 2'000'000);
    ServerProcess server({absl::StrCat("--listen=", target)});
    EXPECT_EQ(program.Wait(), 2);
    EXPECT_THAT(program.standard_error().AwaitEnd(),
                AllOf(HasSubstr(file), HasSubstr("tensor 'w'"), HasSubstr("others have cut it off")));
    ChildProgram list({ADAMANT_CLI, absl::StrCat("--target=", target), "list", "-q"});
    EXPECT_EQ(list.Wait(), 0);
    EXPECT_EQ(list.standard_output().AwaitEnd(), "");
    std::ofstream(file, std::ios::binary) << bytes;
  }
}

TEST_F(CliTest, FileThatHasLessThanItSaysIsNamedAndChangesNothing) {
  // The kernel's own files say that they have a page, and have a few letters.
  const std::string file = Path("short.raw");
  std::filesystem::create_symlink("/sys/devices/system/cpu/online", file);
  ASSERT_EQ(std::filesystem::file_size(file) % 4096, 0u);
  const std::string elements = absl::StrCat(std::filesystem::file_size(file) / 8);
  Do({"create", "s", absl::StrCat("--tensor=v=", elements), absl::StrCat("--tensor=w=", elements)});
  for (const char* command : {"write", "step"}) {
    const Ended ended = Run({command, "s", file});
    EXPECT_EQ(ended.code, 2);
    EXPECT_THAT(ended.error, AllOf(HasSubstr(file), HasSubstr("'v'"), HasSubstr("expected the 4096 bytes")));
  }
  EXPECT_EQ(DoJson({"get", "s"})["parameter_set"]["step"], "0");
}

// Of a server that keeps its sets.
class CheckpointCliTest : public CliTest {
 protected:
  CheckpointCliTest() : CliTest({absl::StrCat("--data_dir=", Directory()), "--durability=every_step"}) {}
  ~CheckpointCliTest() override { std::filesystem::remove_all(Directory()); }

  static std::string Directory() { return absl::StrCat(testing::TempDir(), "cli_test-data-", getpid()); }
};

TEST_F(CheckpointCliTest, MakesListsAndRestoresCheckpoints) {
  Do({"create", "s", "--tensor=w=2"});
  EXPECT_EQ(Run({"restore", "s"}).code, 3);
  const std::string gradient = RawFile("g.raw", {1, 2});
  Do({"step", "s", gradient});
  const json made = DoJson({"checkpoint", "s"});
  EXPECT_EQ(made["checkpoint"]["step"], "1");
  const std::vector<float> then = Values("s", "w");
  Do({"step", "s", gradient});
  EXPECT_THAT(Do({"checkpoint", "s"}), StartsWith("checkpoint of s at step 2, "));
  Do({"step", "s", gradient});

  const json listed = DoJson({"checkpoints", "s"});
  ASSERT_THAT(listed["checkpoints"], SizeIs(2));
  EXPECT_EQ(listed["checkpoints"][0]["step"], "2");
  EXPECT_EQ(listed["checkpoints"][1], made["checkpoint"]);
  EXPECT_THAT(Do({"checkpoints", "s"}), HasSubstr("INCARNATION"));

  EXPECT_EQ(DoJson({"restore", "s", "1"})["parameter_set"]["step"], "1");
  EXPECT_EQ(Values("s", "w"), then);
  EXPECT_EQ(Do({"restore", "s", "2"}), "restored s to step 2\n");
  Do({"step", "s", gradient});
  EXPECT_EQ(Do({"restore", "s"}), "restored s to step 2\n");
  EXPECT_EQ(Run({"restore", "s", "7"}).code, 3);
  EXPECT_EQ(Run({"restore", "s", "1", "--incarnation=7"}).code, 3);
  EXPECT_EQ(Run({"restore", "s", "one"}).code, 2);
  for (const char* command : {"checkpoint", "checkpoints", "restore"}) EXPECT_EQ(Run({command, "absent"}).code, 3);
}

TEST_F(CliTest, WithoutADataDirectoryThereAreNoCheckpoints) {
  Do({"create", "s", "--tensor=w=2"});
  for (const char* command : {"checkpoint", "checkpoints", "restore"}) {
    const Ended ended = Run({command, "s"});
    EXPECT_EQ(ended.code, 5) << command;
    EXPECT_THAT(ended.error, HasSubstr("NO_DATA_DIRECTORY"));
  }
}

TEST_F(CliTest, ForksASet) {
  Do({"create", "s", "--tensor=w=2"});
  Do({"step", "s", RawFile("g.raw", {1, 2})});
  EXPECT_EQ(Do({"fork", "s", "t"}), "forked s as t, at step 1\n");
  EXPECT_EQ(Values("t", "w"), Values("s", "w"));
  EXPECT_EQ(DoJson({"fork", "s", "u", "--device=cpu"})["parameter_set"]["name"], "u");
  EXPECT_EQ(DoJson({"fork", "s", "n", "--durability=nothing"})["parameter_set"]["name"], "n");
  const Ended kept = Run({"fork", "s", "k", "--durability=every_step"});
  EXPECT_EQ(kept.code, 5);
  EXPECT_THAT(kept.error, HasSubstr("NO_DATA_DIRECTORY"));
  EXPECT_EQ(Run({"fork", "s", "k", "--durability=always"}).code, 2);
  EXPECT_EQ(Run({"fork", "s", "t"}).code, 4);
  EXPECT_EQ(Run({"fork", "absent", "v"}).code, 3);
  EXPECT_EQ(Run({"fork", "s"}).code, 2);
}

TEST_F(CliTest, ListsSetsAsATableAsJsonAndByName) {
  for (const char* name : {"a/1", "a/2", "b"}) {
    Do({"create", name, "--tensor=w=2x3", "--tensor", "a=b=scalar", "--label", absl::StrCat("name=", name)});
  }
  const std::vector<std::string> lines = Lines(Do({"list"}));
  ASSERT_THAT(lines, SizeIs(4));
  EXPECT_THAT(lines[0], StartsWith("NAME  STATE  STEP  PARAMETERS  TENSORS  OPTIMIZER"));
  EXPECT_THAT(lines[1], StartsWith("a/1   READY     0           7        2  adam"));
  EXPECT_EQ(Do({"list", "a/", "--quiet"}), "a/1\na/2\n");
  EXPECT_EQ(Do({"list", "-q", "--label=name=b"}), "b\n");
  const json sets = DoJson({"list", "a/"})["parameter_sets"];
  ASSERT_THAT(sets, SizeIs(2));
  EXPECT_EQ(sets[1]["name"], "a/2");
  EXPECT_EQ(sets[1]["parameter_count"], "7");
  EXPECT_THAT(Do({"get", "b", "-t"}), AllOf(HasSubstr("Label:            name=b\n"), HasSubstr("a=b     scalar")));
  EXPECT_EQ(DoJson({"delete", "a/1", "b"})["deleted"], json({"a/1", "b"}));
  EXPECT_EQ(Do({"list", "-q"}), "a/2\n");
}

TEST_F(CliTest, DescribesTheServer) {
  EXPECT_THAT(Do({"info"}), AllOf(HasSubstr("\ncpu     OK "), HasSubstr("\nstate ")));
  EXPECT_EQ(DoJson({"info"})["limits"]["max_message_bytes"], 4 << 20);
}

TEST_F(CliTest, StepsByGradientsInFilesOfEveryFormat) {
  Do({"create", "s", "--tensor=w=2x3", "--tensor=b=2", "--optimizer=sgd", "--lr=1"});
  const std::string b = RawFile("b.raw", {1, 2});
  const json result = DoJson({"step", "s", "w=" + Golden("matrix.npy"), "b=" + b, "--metric=loss=0.5"});
  EXPECT_EQ(result["outcome"], "STEP_OUTCOME_APPLIED");
  EXPECT_EQ(result["step"], "1");
  EXPECT_NEAR(result["grad_norm"], std::sqrt(0.0625 * (1 + 4 + 9 + 16 + 25) + 5), 1e-12);
  EXPECT_THAT(Values("s", "w"), ElementsAre(0, -0.25, -0.5, -0.75, -1, -1.25));
  EXPECT_THAT(Values("s", "b"), ElementsAre(-1, -2));
  EXPECT_EQ(DoJson({"get", "s"})["parameter_set"]["statistics"]["last_metrics"]["loss"], 0.5);
  // All tensors in one, one behind the other; and what comes back is a gradient as well as any other file.
  Do({"step", "s", RawFile("all.raw", {1, 1, 1, 1, 1, 1, 8, 8}), "--lr=0.5", "-o", Path("after.safetensors")});
  EXPECT_THAT(Values("s", "w"), ElementsAre(-0.5, -0.75, -1, -1.25, -1.5, -1.75));
  EXPECT_THAT(Do({"step", "s", Path("after.safetensors"), "--grad-scale=2"}),
              StartsWith("step 3  APPLIED  grad_norm="));
  EXPECT_THAT(Values("s", "b"), ElementsAre(-2.5, -3));
  // Of some tensors, but only by request.
  const Ended incomplete = Run({"step", "s", "b=" + b});
  EXPECT_EQ(incomplete.code, 2);
  EXPECT_THAT(incomplete.error, AllOf(HasSubstr("'w'"), HasSubstr("--partial")));
  EXPECT_EQ(DoJson({"step", "s", "--partial", "b=" + b, "--dtype=bfloat16"})["step"], "4");
  EXPECT_THAT(Values("s", "b"), ElementsAre(-3.5, -5));
  EXPECT_THAT(Values("s", "w"), ElementsAre(-0.25, -0.375, -0.5, -0.625, -0.75, -0.875));
}

TEST_F(CliTest, StepOfARequestThatWasAppliedIsNotAppliedAgain) {
  Do({"create", "s", "--tensor=w=2", "--optimizer=sgd", "--lr=1"});
  const std::string gradient = RawFile("g.raw", {1, 2});
  const std::vector<std::string> step = {"step", "s", gradient, "--request-id=mine", "--expected-step=0"};
  EXPECT_EQ(DoJson(step)["replayed"], false);
  EXPECT_EQ(DoJson(step)["replayed"], true);
  EXPECT_THAT(Values("s", "w"), ElementsAre(-1, -2));
  EXPECT_EQ(Run({"step", "s", gradient, "--expected-step=0"}).code, 6);
}

TEST_F(CliTest, GradientThatIsNotFiniteHasAnExitCodeOfItsOwn) {
  Do({"create", "s", "--tensor=w=2"});
  const Ended ended = Run({"step", "s", RawFile("nan.raw", {1, std::nanf("")})});
  EXPECT_EQ(ended.code, 10);
  EXPECT_THAT(ended.output, HasSubstr("SKIPPED_NON_FINITE"));
  EXPECT_THAT(ended.output, HasSubstr("not finite at tensor 0 offset 1"));
}

TEST_F(CliTest, WritesAllOrSomeTensorsAndReadsThemIntoFiles) {
  Do({"create", "s", "--tensor=w=2x3", "--tensor=b=2"});
  EXPECT_THAT(Do({"write", "s", RawFile("all.raw", {1, 2, 3, 4, 5, 6, 7, 8})}),
              StartsWith("wrote 2 tensors of s: step 0"));
  Do({"read", "s", "-o", Path("s.safetensors")});
  Do({"read", "s", "w", "-o", Path("w.npy")});
  EXPECT_EQ(ReadFile(Path("w.npy")).substr(128), ReadFile(Path("all.raw")).substr(0, 24));
  EXPECT_EQ(Run({"read", "s", "-o", Path("s.npy")}).code, 2);
  Do({"write", "s", "--partial", "b=" + RawFile("b.raw", {70, 80})});
  EXPECT_THAT(Values("s", "b"), ElementsAre(70, 80));
  EXPECT_THAT(Values("s", "w"), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(Do({"read", "s"}), HasSubstr("b       2       70   80    75  106.301"));
  Do({"write", "s", Path("s.safetensors")});
  EXPECT_EQ(Do({"read", "s", "-o", "-", "--format=raw"}), ReadFile(Path("all.raw")));
  // A shape is not just a number of elements, and a name is one that there is.
  Do({"create", "other", "--tensor=w=3x2", "--tensor=c=2"});
  const Ended shape = Run({"write", "other", "--partial", "w=" + Path("w.npy")});
  EXPECT_EQ(shape.code, 2);
  EXPECT_THAT(shape.error, AllOf(HasSubstr("w.npy"), HasSubstr("expected the shape 3x2, got 2x3")));
  const Ended name = Run({"write", "s", Golden("mixed.safetensors")});
  EXPECT_EQ(name.code, 2);
  EXPECT_THAT(name.error, HasSubstr("the set has no tensor of this name"));
  EXPECT_THAT(Run({"read", "s", "no such tensor"}).error, HasSubstr("has no tensor 'no such tensor'"));
}

TEST_F(CliTest, WhatStandsBeforeAnEqualsSignIsATensorIfTheSetHasIt) {
  Do({"create", "s", "--tensor=w=2", "--tensor=w=b=2"});
  RawFile("x.raw", {1, 2});
  RawFile("w=x.raw", {3, 4});
  std::filesystem::create_directories(Path("a=b"));
  RawFile("a=b/x.raw", {5, 6});
  const auto write = [&](const std::string& argument) {
    ChildProgram program({"/bin/sh", "-c",
                          absl::StrCat("cd ", folder_, " && exec ", ADAMANT_CLI, " --target=", server_.address(),
                                       " write s --partial ", argument)});
    const int code = program.Wait();
    return Ended{code, program.standard_output().AwaitEnd(), program.standard_error().AwaitEnd()};
  };
  EXPECT_EQ(write("w=x.raw").code, 0);
  EXPECT_THAT(Values("s", "w"), ElementsAre(1, 2));
  EXPECT_EQ(write("w=w=x.raw").code, 0);
  EXPECT_THAT(Values("s", "w"), ElementsAre(3, 4));
  EXPECT_EQ(write("w=a=b/x.raw").code, 0);
  EXPECT_THAT(Values("s", "w"), ElementsAre(5, 6));
  // The longest name.
  EXPECT_EQ(write("w=b=x.raw").code, 0);
  EXPECT_THAT(Values("s", "w=b"), ElementsAre(1, 2));
  const Ended file = write("./w=x.raw");
  EXPECT_EQ(file.code, 2);
  EXPECT_THAT(file.error, AllOf(HasSubstr("./w=x.raw"), HasSubstr("got 2")));
  const Ended neither = write("v=x.raw");
  EXPECT_EQ(neither.code, 3);
  EXPECT_THAT(neither.error, AllOf(HasSubstr("v=x.raw: No such file"), HasSubstr("no tensor 'v'")));
}

TEST_F(CliTest, ExportAndImportGoOnWithTheSameBits) {
  for (const std::string optimizer : {"adam", "sgd"}) {
    const std::string set = optimizer, copy = optimizer + "-copy";
    std::vector<std::string> create = {"create",
                                       set,
                                       "--tensor=w=2x3",
                                       "--tensor=b=2",
                                       "--optimizer=" + optimizer,
                                       "--clip-norm=1",
                                       "--schedule=linear",
                                       "--total-steps=10"};
    create.push_back(optimizer == "adam" ? "--amsgrad" : "--momentum=0.9");
    Do(create);
    const std::string gradient = RawFile("g.raw", {1, -2, 3, 0.5, 0, -1, 2, 4});
    Do({"step", set, gradient});
    Do({"step", set, gradient});
    // So that not all tensors have had as many updates.
    Do({"step", set, "--partial", "b=" + RawFile("b.raw", {1, 1})});
    Do({"export", set, Path("state.safetensors"), "--optimizer-state"});
    EXPECT_THAT(Do({"import", copy, Path("state.safetensors"), "--create"}),
                HasSubstr("with its optimizer's state: step 3"));
    // Over a set that there is, too, whatever it has been through.
    Do({"step", copy, gradient});
    Do({"import", copy, Path("state.safetensors")});
    for (int i = 0; i < 3; ++i) {
      for (const std::string& each : {set, copy}) Do({"step", each, gradient});
    }
    std::vector<std::string> slots = {"parameter"};
    if (optimizer == "sgd") slots.push_back("momentum_buffer");
    if (optimizer == "adam") slots.insert(slots.end(), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"});
    for (const std::string& slot : slots) {
      const auto bytes = [&](const std::string& of) {
        return Do({"read", of, "--slot", slot, "-o", "-", "--format=raw"});
      };
      EXPECT_EQ(bytes(set), bytes(copy)) << slot;
    }
    const json now = DoJson({"get", copy, "-t"});
    EXPECT_EQ(now["parameter_set"]["step"], "6");
    EXPECT_EQ(now["tensors"][0]["update_count"], "5");
    EXPECT_EQ(now["parameter_set"]["clipping"]["max_norm"], 1);
  }
}

// As who reads and writes it with another library may leave it.
TEST_F(CliTest, AFileWhoseTensorsAreInAnotherOrderIsTheSame) {
  Do({"create", "s", "--tensor=w=2", "--tensor=b=2"});
  Do({"step", "s", RawFile("g.raw", {1, -2, 3, 4})});
  Do({"step", "s", "--partial", "w=" + RawFile("w.raw", {0.5, 1})});
  Do({"export", "s", Path("s.safetensors"), "--optimizer-state"});
  const auto file = tensor_files::TensorFile::Open(Path("s.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<tensor_files::FileTensor> reversed(file->tensors().rbegin(), file->tensors().rend());
  auto writer = tensor_files::TensorFileWriter::Create(Path("r.safetensors"), tensor_files::FileFormat::kSafetensors,
                                                       reversed, file->metadata());
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < reversed.size(); ++i) {
    ASSERT_TRUE(file->Read(reversed.size() - 1 - i, 0, writer->Elements(i)).ok());
  }
  ASSERT_TRUE(writer->Commit().ok());
  Do({"import", "copy", Path("r.safetensors"), "--create"});
  EXPECT_EQ(DoJson({"get", "copy", "-t"})["tensors"], DoJson({"get", "s", "-t"})["tensors"]);
  EXPECT_EQ(Values("copy", "b", "exp_avg"), Values("s", "b", "exp_avg"));
}

TEST_F(CliTest, ExportedParametersAloneAreImportedAsSuch) {
  Do({"create", "s", "--tensor=w=2"});
  const std::string gradient = RawFile("g.raw", {1, -2});
  Do({"step", "s", gradient});
  Do({"export", "s", Path("s.safetensors")});
  Do({"step", "s", gradient});
  const std::vector<float> exp_avg = Values("s", "w", "exp_avg");
  EXPECT_THAT(Do({"import", "s", Path("s.safetensors")}), HasSubstr("parameters alone: step 2"));
  EXPECT_THAT(Values("s", "w"), ElementsAre(-0.001f, 0.001f));
  EXPECT_EQ(Values("s", "w", "exp_avg"), exp_avg);
  EXPECT_EQ(Run({"import", "x", Golden("mixed.safetensors"), "--create"}).code, 2);
  EXPECT_EQ(Run({"export", "s", Path("s.npy")}).code, 2);
}

TEST_F(CliTest, ExportInSixteenBitsRoundsToTheNearestAndSaysWhatIsTooLarge) {
  Do({"create", "s", "--tensor=odd=1", "--tensor=w=4"});
  // In bf16 halfway between two, once to each side; and what fp16 does not have.
  Do({"write", "s", "odd=" + RawFile("odd.raw", {1}), "w=" + RawFile("w.raw", {0x1.01p0f, 0x1.03p0f, 1e5f, -0.5f})});
  for (const auto& [dtype, name] : {std::pair("bfloat16", "BF16"), std::pair("float16", "F16")}) {
    const std::string file = Path(absl::StrCat(dtype, ".safetensors"));
    const json exported = DoJson({"export", "s", file, "--dtype", dtype});
    EXPECT_EQ(exported["overflowed"], name == std::string("F16") ? 1 : 0);
    EXPECT_THAT(ReadFile(file), HasSubstr(absl::StrCat("\"dtype\":\"", name, "\"")));
  }
  Do({"import", "copy", Path("bfloat16.safetensors"), "--create"});
  EXPECT_THAT(Values("copy", "w"), ElementsAre(1, 0x1.04p0f, 99840, -0.5));
  EXPECT_THAT(Values("copy", "odd"), ElementsAre(1));
  EXPECT_THAT(Run({"export", "s", Path("f.safetensors"), "--dtype=float16"}).error,
              HasSubstr("1 elements are too large for float16"));
  EXPECT_EQ(Run({"export", "s", Path("x.safetensors"), "--dtype=float8"}).code, 2);
  EXPECT_EQ(Run({"export", "s", Path("x.safetensors"), "--dtype=float16", "--optimizer-state"}).code, 2);
}

TEST_F(CliTest, RenamesTensorsOnTheirWayOutAndIn) {
  Do({"create", "s", "--tensor=layers.0.w=2", "--tensor=layers.1.w=2", "--tensor=b=1"});
  const std::string gradient = RawFile("g.raw", {1, -2, 3, 0.5, -1});
  Do({"step", "s", gradient});
  const auto names = [&](const std::string& set) {
    std::vector<std::string> found;
    const json described = DoJson({"get", set, "-t"});
    for (const json& tensor : described["tensors"]) found.push_back(tensor["name"]);
    return found;
  };
  const std::string file = Path("renamed.safetensors");
  Do({"export", "s", file, "--optimizer-state", "--rename=layers.*.w=model.*.weight", "--rename", "b=model.bias"});
  EXPECT_THAT(ReadFile(file), AllOf(HasSubstr("\"exp_avg/model.1.weight\""), Not(HasSubstr("layers"))));
  Do({"import", "as-it-is", file, "--create"});
  EXPECT_THAT(names("as-it-is"), ElementsAre("model.0.weight", "model.1.weight", "model.bias"));
  Do({"import", "back", file, "--create", "--rename=model.bias=b", "--rename=model.*.weight=layers.*.w"});
  EXPECT_THAT(names("back"), ElementsAre("layers.0.w", "layers.1.w", "b"));
  Do({"import", "s", file, "--rename=model.bias=b", "--rename=model.*.weight=layers.*.w"});
  for (const char* slot : {"parameter", "exp_avg", "exp_avg_sq"}) {
    EXPECT_EQ(Values("back", "layers.1.w", slot), Values("s", "layers.1.w", slot)) << slot;
    EXPECT_EQ(Values("as-it-is", "model.bias", slot), Values("s", "b", slot)) << slot;
  }
  Do({"create", "new", "--from", Golden("mixed.safetensors"), "--skip-other-types", "--rename=*=m.*"});
  EXPECT_THAT(Values("new", "m.weight"), ElementsAre(0, 0.25, 0.5, 0.75, 1, 1.25));
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"--rename=b", "expected FROM=TO"},
      {"--rename=c=d", "'c=d' is for no tensor"},
      {"--rename=*=b", "expected one *"},
      {"--rename=b=layers.0.w", "would both be 'layers.0.w'"}};
  for (const auto& [rule, error] : wrong) {
    const Ended ended = Run({"export", "s", Path("x.safetensors"), rule});
    EXPECT_EQ(ended.code, 2);
    EXPECT_THAT(ended.error, HasSubstr(error));
  }
}

TEST_F(CliTest, UpdatesGroupAndSet) {
  Do({"create", "s", "--tensor=w=2", "--label=a=1", "--label=b=2"});
  const json set = DoJson({"update", "s", "--lr=0.5", "--weight-decay=0.1", "--betas=0.8,0.9", "--clip-value=2",
                           "--non-finite=reject", "--label=c=3", "--label=a=", "--frozen=true"})["parameter_set"];
  EXPECT_EQ(set["groups"][0]["learning_rate"], 0.5);
  EXPECT_EQ(set["groups"][0]["adam"]["weight_decay"], 0.1);
  EXPECT_EQ(set["groups"][0]["adam"]["beta2"], 0.9);
  EXPECT_EQ(set["groups"][0]["adam"]["eps"], 1e-8);
  EXPECT_EQ(set["groups"][0]["frozen"], true);
  EXPECT_EQ(set["clipping"]["max_value"], 2);
  EXPECT_EQ(set["non_finite_policy"], "NON_FINITE_POLICY_REJECT");
  EXPECT_EQ(set["labels"], json({{"b", "2"}, {"c", "3"}}));
  EXPECT_FALSE(DoJson({"update", "s", "--clip-value=none"})["parameter_set"]["clipping"].contains("max_value"));
  EXPECT_EQ(Run({"update", "s"}).code, 2);
  EXPECT_EQ(Run({"update", "s", "--group=none", "--lr=1"}).code, 2);
  EXPECT_THAT(Run({"update", "s", "--lr=-1"}).error, HasSubstr("INVALID_FIELD"));
}

TEST_F(CliTest, ShowsWhatOutlivesTheServer) {
  const std::string gradient = RawFile("g.raw", {1, 2});
  const std::string data_directory = absl::StrCat("--data_dir=", Path("data"));
  {
    const ServerProcess server({data_directory});
    Aim(server);
    EXPECT_EQ(Do({"create", "kept", "--tensor=w=2", "--durability=every_step"}),
              "created kept, 2 parameters in 1 tensors, kept: every_step:16\n");
    EXPECT_EQ(Do({"fork", "kept", "alike"}), "forked kept as alike, at step 0, kept: every_step:16\n");
    EXPECT_EQ(Run({"create", "kept", "--tensor=w=2", "--durability=nothing", "--if-not-exists"}).code, 4);
    Do({"create", "often", "--tensor=w=2", "--durability=checkpoints:2,90s"});
    Do({"create", "lost", "--tensor=w=2"});
    Do({"step", "kept", gradient});
    EXPECT_EQ(DoJson({"step", "kept", gradient})["durable_step"], "2");
    EXPECT_THAT(Do({"get", "kept"}), HasSubstr("Durability:       every_step:16\n"));
    EXPECT_THAT(Do({"get", "often"}),
                AllOf(HasSubstr("Durability:       checkpoints:2,1m30s\n"), Not(HasSubstr("Last checkpoint"))));
    EXPECT_THAT(Do({"get", "lost"}), HasSubstr("Durability:       nothing\n"));
    EXPECT_THAT(Do({"list"}), AllOf(HasSubstr("cpu     every_step:16\n"), HasSubstr("cpu     checkpoints:2,1m30s\n"),
                                    HasSubstr("cpu     nothing\n")));
    Do({"export", "kept", Path("kept.safetensors"), "--optimizer-state"});
    Do({"import", "copy", Path("kept.safetensors"), "--create", "--durability=checkpoints:1"});
    EXPECT_THAT(Do({"get", "copy"}), HasSubstr("Durability:       checkpoints:1\n"));
    const Ended wrong = Run({"create", "x", "--tensor=w=2", "--durability=sometimes"});
    EXPECT_EQ(wrong.code, 2);
    EXPECT_THAT(wrong.error, AllOf(HasSubstr("--durability: expected nothing"), HasSubstr("got sometimes")));
  }
  const ServerProcess server({data_directory});
  Aim(server);
  EXPECT_EQ(Do({"list", "-q"}), "alike\ncopy\nkept\noften\n");
  EXPECT_EQ(DoJson({"get", "kept"})["parameter_set"]["step"], "2");
  EXPECT_THAT(Do({"get", "copy"}),
              AllOf(HasSubstr("Last checkpoint:  step 2, 20"), HasSubstr("Restored from:    step 2, 20")));
}

// A server with a data directory, and a set of two groups with a checkpoint of step 2.
class CheckpointFolderTest : public CliTest {
 protected:
  CheckpointFolderTest() : CliTest({absl::StrCat("--data_dir=", DataDirectory())}) {
    std::ofstream(Path("spec.json")) << R"({"tensors": [{"name": "w", "shape": [2], "group": "weights"},
        {"name": "none", "shape": [0], "group": "biases"}, {"name": "b", "shape": [1], "group": "biases"}],
        "groups": [{"name": "biases", "learning_rate": 0.01, "sgd": {"momentum": 0.9}},
        {"name": "weights", "adam": {"weight_decay": 0.1}}],
        "labels": {"team": "a"}, "durability": {"every_step": {}}})";
    Do({"create", "s", "--spec", Path("spec.json")});
    Do({"step", "s", RawFile("g.raw", {1, -2, 3})});
    // So that not all tensors have had as many updates.
    Do({"step", "s", "--partial", "w=" + RawFile("w.raw", {0.5, 1})});
    Do({"checkpoint", "s"});
    Take("s");
  }
  ~CheckpointFolderTest() override { std::filesystem::remove_all(DataDirectory()); }

  static std::string DataDirectory() { return absl::StrCat(testing::TempDir(), "cli_test-data-", getpid()); }

  // Copies the set's last checkpoint.
  void Take(const std::string& set) {
    const json checkpoint = DoJson({"get", set})["parameter_set"]["last_checkpoint"];
    const std::string name =
        absl::StrCat(checkpoint["step"].get<std::string>(), "-", checkpoint["incarnation"].get<std::string>());
    std::filesystem::remove_all(checkpoint_);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(DataDirectory())) {
      if (entry.path().filename() == name) std::filesystem::copy(entry.path(), checkpoint_);
    }
  }

  void ExpectAlike(const std::string& set, const std::string& other) {
    for (const char* slot : {"parameter", "exp_avg", "exp_avg_sq", "momentum_buffer"}) {
      for (const char* tensor : {"w", "b"}) {
        EXPECT_EQ(Values(set, tensor, slot), Values(other, tensor, slot)) << tensor << " " << slot;
      }
    }
  }

  const std::string checkpoint_ = Path("checkpoint");  // a copy of its folder
};

TEST_F(CheckpointFolderTest, MakesTheSetAgain) {
  EXPECT_THAT(Do({"import", "copy", checkpoint_, "--create", "--durability=nothing"}),
              HasSubstr("imported copy with its optimizer's state: step 2"));
  for (const char* set : {"s", "copy"}) Do({"step", set, Path("g.raw")});
  ExpectAlike("copy", "s");
  json was = DoJson({"get", "s", "-t"});
  json is = DoJson({"get", "copy", "-t"});
  EXPECT_EQ(is["tensors"], was["tensors"]);
  for (const char* field : {"groups", "labels", "step"}) {
    EXPECT_EQ(is["parameter_set"][field], was["parameter_set"][field]) << field;
  }
  EXPECT_EQ(is["tensors"][0]["update_count"], "3");
  EXPECT_EQ(is["tensors"][2]["update_count"], "2");
}

TEST_F(CheckpointFolderTest, IsForASetWithOtherNamesInAnotherOrderToo) {
  std::ofstream(Path("spec.json")) << R"({"tensors": [{"name": "bias", "shape": [1], "group": "biases"},
      {"name": "w", "shape": [2], "group": "weights"}], "groups": [{"name": "weights", "adam": {"weight_decay": 0.1}},
      {"name": "biases", "learning_rate": 0.01, "sgd": {"momentum": 0.9}}]})";
  Do({"create", "other", "--spec", Path("spec.json")});
  Do({"import", "other", checkpoint_, "--rename=b=bias"});
  const json is = DoJson({"get", "other", "-t"});
  EXPECT_EQ(is["tensors"][0]["update_count"], "1");
  EXPECT_EQ(is["tensors"][1]["update_count"], "2");
  EXPECT_EQ(Values("other", "bias", "momentum_buffer"), Values("s", "b", "momentum_buffer"));
  EXPECT_EQ(Values("other", "w", "exp_avg"), Values("s", "w", "exp_avg"));
  // The same of a file.
  Do({"export", "s", Path("s.safetensors"), "--optimizer-state"});
  Do({"import", "other", Path("s.safetensors"), "--rename=b=bias"});
  EXPECT_EQ(DoJson({"get", "other", "-t"})["tensors"], is["tensors"]);
}

// A parameter of this name has another one in the file, and one may be called like a moment of another.
TEST_F(CheckpointFolderTest, HasTensorsWithNamesOfOtherThings) {
  std::filesystem::remove_all(checkpoint_);
  for (const char* optimizer : {"adam", "sgd"}) {
    const std::string set = absl::StrCat("odd-", optimizer);
    Do({"create", set, "--tensor=__metadata__=2", "--tensor=__metadata___=1", "--tensor=x=1", "--durability=every_step",
        "--optimizer", optimizer});
    Do({"step", set, RawFile("odd.raw", {1, -2, 3, 4})});
    Do({"step", set, "--partial", "x=" + RawFile("x.raw", {1})});
    Do({"checkpoint", set});
    Take(set);
    Do({"import", "copy", checkpoint_, "--create"});
    EXPECT_EQ(DoJson({"get", "copy", "-t"})["tensors"], DoJson({"get", set, "-t"})["tensors"]);
    EXPECT_EQ(Values("copy", "__metadata__"), Values(set, "__metadata__"));
    EXPECT_EQ(Values("copy", "__metadata___"), Values(set, "__metadata___"));
    Do({"import", set, checkpoint_});
    Do({"delete", "copy"});
  }
  Do({"create", "like", "--tensor=x=1", "--tensor=exp_avg/x=1", "--tensor=exp_avg_sq/x=1", "--optimizer=sgd",
      "--durability=every_step"});
  Do({"step", "like", RawFile("like.raw", {1, 2, 3})});
  Do({"step", "like", "--partial", "x=" + Path("x.raw")});
  Do({"checkpoint", "like"});
  Take("like");
  Do({"import", "copy", checkpoint_, "--create"});
  EXPECT_EQ(DoJson({"get", "copy", "-t"})["tensors"], DoJson({"get", "like", "-t"})["tensors"]);
  // The same of a file.
  Do({"export", "like", Path("like.safetensors"), "--optimizer-state"});
  Do({"import", "again", Path("like.safetensors"), "--create"});
  EXPECT_EQ(DoJson({"get", "again", "-t"})["tensors"], DoJson({"get", "like", "-t"})["tensors"]);
  // Another set has moments of these names.
  Do({"create", "moments", "--tensor=x=1"});
  for (const std::string& saved : {checkpoint_, Path("like.safetensors")}) {
    EXPECT_THAT(Do({"import", "moments", saved}), HasSubstr("parameters alone"));
    EXPECT_THAT(Values("moments", "x", "exp_avg"), ElementsAre(0));
  }
}

TEST_F(CheckpointFolderTest, IsToldFromWhatIsNone) {
  std::filesystem::create_directory(Path("empty"));
  for (const std::string& path : {Path("missing"), Path("missing.safetensors"), Path("empty")}) {
    const Ended ended = Run({"import", "copy", path, "--create"});
    EXPECT_EQ(ended.code, 3) << ended.error;
    EXPECT_THAT(ended.error, HasSubstr(path));
  }
  std::filesystem::remove(absl::StrCat(checkpoint_, "/optimizer.safetensors"));
  std::filesystem::create_directory(absl::StrCat(checkpoint_, "/optimizer.safetensors"));
  const Ended ended = Run({"import", "copy", checkpoint_, "--create"});
  EXPECT_THAT(ended.error, HasSubstr("optimizer.safetensors: Is a directory"));
  EXPECT_EQ(Do({"list", "-q"}), "s\n");
}

TEST_F(CheckpointFolderTest, WithADamagedFileIsNotImported) {
  for (const char* name : {"parameters.safetensors", "optimizer.safetensors", "MANIFEST.json"}) {
    const std::string path = absl::StrCat(checkpoint_, "/", name);
    const std::string good = ReadFile(path);
    const auto expect_refused = [&](const std::string& bytes) {
      std::ofstream(path, std::ios::binary) << bytes;
      const Ended ended = Run({"import", "copy", checkpoint_, "--create"});
      EXPECT_EQ(ended.code, 9) << name;
      EXPECT_THAT(ended.error, HasSubstr(path));
    };
    std::string flipped = good;
    flipped[flipped.size() - 3] ^= 1;
    expect_refused(flipped);
    expect_refused(good.substr(0, good.size() - 1));
    expect_refused(good + '\0');
    std::filesystem::remove(path);
    const Ended missing = Run({"import", "copy", checkpoint_, "--create"});
    EXPECT_EQ(missing.code, name == std::string("MANIFEST.json") ? 3 : 9) << name;
    EXPECT_THAT(missing.error, HasSubstr(path));
    std::ofstream(path, std::ios::binary) << good;
  }
  EXPECT_EQ(Do({"list", "-q"}), "s\n");
  Do({"import", "copy", checkpoint_, "--create"});
}

TEST_F(CheckpointFolderTest, OfAnEarlierVersionIsForASetThatIsThere) {
  const std::string path = absl::StrCat(checkpoint_, "/MANIFEST.json");
  auto manifest = tensor_files::ParseManifest(ReadFile(path));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  manifest->clear_tensor_groups();
  std::ofstream(path, std::ios::binary) << *tensor_files::FormatManifest(*manifest);
  const Ended refused = Run({"import", "copy", checkpoint_, "--create"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.error, HasSubstr("in which group each tensor is"));
  std::ofstream(Path("spec.json")) << R"({"tensors": [{"name": "w", "shape": [2]}, {"name": "none", "shape": [0]},
        {"name": "b", "shape": [1]}], "groups": [{"name": "all", "sgd": {}}]})";
  Do({"create", "copy", "--spec", Path("spec.json")});
  Do({"import", "copy", checkpoint_});
  EXPECT_EQ(Values("copy", "w"), Values("s", "w"));
}

TEST_F(CliTest, SpecificationAsJsonMakesSetsOfSeveralGroups) {
  std::ofstream(Path("spec.json")) << R"({"tensors": [{"name": "w", "shape": [2]}, {"name": "b", "shape": [1],
      "group": "biases"}], "groups": [{"name": "weights", "adam": {"weight_decay": 0.1}},
      {"name": "biases", "learning_rate": 0.01, "sgd": {}}]})";
  Do({"create", "s", "--spec", Path("spec.json")});
  EXPECT_THAT(Do({"list"}), HasSubstr("adam,sgd"));
  const Ended ambiguous = Run({"update", "s", "--lr=1"});
  EXPECT_EQ(ambiguous.code, 2);
  EXPECT_THAT(ambiguous.error, HasSubstr("which of the 2 groups?"));
  EXPECT_EQ(DoJson({"update", "s", "-g", "biases", "--lr=1"})["parameter_set"]["groups"][1]["learning_rate"], 1);
  std::ofstream(Path("wrong.json")) << R"({"no_such_field": 1})";
  EXPECT_THAT(Run({"create", "t", "--spec", Path("wrong.json")}).error, HasSubstr("no_such_field"));
}

TEST_F(CliTest, WatchPrintsAnEventALineUntilTheSetIsDeleted) {
  Do({"create", "s", "--tensor=w=2"});
  ChildProgram objects(Command({"watch", "s", "--json"}));
  ChildProgram lines(Command({"watch", "s"}));
  ASSERT_TRUE(objects.standard_output().AwaitLine("current").has_value());
  ASSERT_TRUE(lines.standard_output().AwaitLine("step 0  is READY, 2 parameters").has_value());
  Do({"step", "s", RawFile("g.raw", {3, 4}), "--metric=loss=0.25"});
  EXPECT_EQ(Run({"step", "s", RawFile("nan.raw", {1, std::nanf("")})}).code, 10);
  Do({"update", "s", "--lr=0.5"});
  Do({"delete", "s"});
  EXPECT_EQ(objects.Wait(), 0);
  EXPECT_EQ(lines.Wait(), 0);
  const std::vector<std::string> printed = Lines(objects.standard_output().AwaitEnd());
  ASSERT_THAT(printed, SizeIs(5));
  const std::vector<std::string> kinds = {"current", "committed", "skipped", "config_changed", "deleted"};
  for (size_t i = 0; i < printed.size(); ++i) EXPECT_TRUE(json::parse(printed[i]).contains(kinds[i])) << printed[i];
  EXPECT_EQ(json::parse(printed[1])["committed"]["grad_norm"], 5);
  EXPECT_THAT(lines.standard_output().AwaitEnd(),
              AllOf(HasSubstr("\nstep 1  grad_norm=5  lr=0.001  loss=0.25\n"),
                    HasSubstr("\nstep 1  skipped: not finite at tensor 0 offset 1\n"),
                    HasSubstr("\nstep 1  configuration changed, revision 2\n"), HasSubstr("\nstep 1  deleted\n")));
}

TEST_F(CliTest, PlotDrawsWhatWatchRecordsAndWhatTheBenchmarkPrints) {
  Do({"create", "run", "--tensor=w=2", "--schedule=linear", "--total-steps=20"});
  ChildProgram watch(Command({"watch", "run", "--json", "--events=22"}));
  ASSERT_TRUE(watch.standard_output().AwaitLine("current").has_value());
  for (int i = 0; i < 20; ++i) Do({"step", "run", RawFile("g.raw", {std::pow(0.5f, static_cast<float>(i)), 0})});
  EXPECT_EQ(Run({"step", "run", RawFile("nan.raw", {1, std::nanf("")})}).code, 10);
  EXPECT_EQ(watch.Wait(), 0);
  std::ofstream(Path("run.jsonl")) << watch.standard_output().AwaitEnd();
  Do({"plot", Path("run.jsonl"), "-o", Path("run.svg"), "--title=a < b & \"c\""});
  const std::string svg = ReadFile(Path("run.svg"));
  EXPECT_THAT(svg, AllOf(HasSubstr("gradient norm"), HasSubstr("learning rate"), HasSubstr("a &lt; b &amp;"),
                         HasSubstr("stroke-dasharray")));
  std::ofstream(Path("bench.jsonl"))
      << R"({"name":"step","params":65,"transport":"tcp","median_seconds":9.5e-05,"min_seconds":9e-05,"kernel_seconds":2.5e-07,"ratio":1.22})"
      << "\n"
      << R"({"name":"step","params":1048576,"transport":"tcp","median_seconds":0.0026,"min_seconds":0.002,"kernel_seconds":0.00043})";
  const std::string bench = Do({"plot", Path("bench.jsonl"), "--output=-"});
  EXPECT_THAT(bench, AllOf(HasSubstr("median time over tcp"), HasSubstr(">step</text>"), HasSubstr("kernel"),
                           HasSubstr(" ms</text>"), HasSubstr("<circle"), Not(HasSubstr("min"))));
  std::ofstream(Path("bench.svg")) << bench;
  // An SVG is XML.
  for (const char* file : {"run.svg", "bench.svg"}) {
    const std::string parse = absl::StrCat(
        "/usr/bin/python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' ", Path(file));
    EXPECT_EQ(std::system(parse.c_str()), 0) << file;
  }
  std::ofstream(Path("other.jsonl")) << "{}\n";
  EXPECT_EQ(Run({"plot", Path("other.jsonl"), "-o", Path("x.svg")}).code, 2);
  std::ofstream(Path("other.jsonl")) << "no JSON\n";
  EXPECT_THAT(Run({"plot", Path("other.jsonl"), "-o", Path("x.svg")}).error, HasSubstr("other.jsonl:1: expected"));
  EXPECT_EQ(Run({"plot", Path("none.jsonl"), "-o", Path("x.svg")}).code, 3);
}

TEST_F(CliTest, ErrorsHaveExitCodesByTheirKind) {
  Do({"create", "s", "--tensor=w=2", "--await-write"});
  const std::string gradient = RawFile("g.raw", {1, 2});
  const std::vector<std::pair<std::vector<std::string>, int>> cases = {
      {{}, 2},
      {{"no_such_command"}, 2},
      {{"list", "--no-such-flag"}, 2},
      {{"get"}, 2},
      {{"list", "--timeout=never"}, 2},
      {{"create", "t", "--tensor=w=2xtwo"}, 2},
      {{"create", "t", "--tensor=w=2", "--lr=-1"}, 2},
      {{"create", "t", "--tensor=w=2", "--momentum=0.9"}, 2},
      {{"create", "t", "--tensor=w=2", "--schedule=cosine"}, 2},
      {{"create", "t", "--tensor=w=2", "--from=x.safetensors"}, 2},
      {{"step", "s", Path("g.txt")}, 2},
      {{"get", "none"}, 3},
      {{"write", "s", Path("none.raw")}, 3},
      {{"create", "s", "--tensor=w=2"}, 4},
      {{"step", "s", gradient}, 5},
      {{"--target=127.0.0.1:1", "--timeout=100ms", "list"}, 7},
      {{"create", "t", "--tensor=w=100000000000"}, 5},
  };
  for (const auto& [arguments, code] : cases) {
    const Ended ended = Run(arguments);
    EXPECT_EQ(ended.code, code) << testing::PrintToString(arguments) << ended.error;
    EXPECT_THAT(ended.output, IsEmpty()) << testing::PrintToString(arguments);
    EXPECT_THAT(ended.error, StartsWith("adamant: "));
  }
  EXPECT_THAT(Run({"get", "none"}).error, HasSubstr("(SET_NOT_FOUND)"));
  EXPECT_THAT(Run({"no_such_command"}).error, HasSubstr("there is no command 'no_such_command'"));
}

TEST_F(CliTest, ServerWithoutRoomAndDiskWithoutRoomHaveExitCodes) {
  ServerProcess small({"--state_bytes=1048576"});
  const auto run = [&](const std::string& name) {
    ChildProgram program(
        {ADAMANT_CLI, "--target", small.address(), "--timeout=1s", "create", name, "--tensor=w=50000"});
    return program.Wait();
  };
  EXPECT_EQ(run("a"), 0);
  EXPECT_EQ(run("b"), 8);
  ChildProgram full({"/bin/sh", "-c", absl::StrCat(ADAMANT_CLI, " --target=", server_.address(), " info >/dev/full")});
  EXPECT_EQ(full.Wait(), 1);
  EXPECT_THAT(full.standard_error().AwaitEnd(), HasSubstr("standard output"));
}

// Answers every call with one error.
class RefusingServer : public grpc::CallbackGenericService {
 public:
  explicit RefusingServer(const grpc::Status& status) : status_(status) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }

  const std::string& address() const { return address_; }

 private:
  struct Refusal : grpc::ServerGenericBidiReactor {
    explicit Refusal(const grpc::Status& status) { Finish(status); }
    void OnDone() override { delete this; }
  };

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Refusal(status_);
  }

  const grpc::Status status_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(CliTest, EveryErrorOfAServerHasItsExitCode) {
  const std::vector<std::pair<grpc::StatusCode, int>> codes = {
      {grpc::StatusCode::INTERNAL, 1},          {grpc::StatusCode::UNKNOWN, 1},
      {grpc::StatusCode::INVALID_ARGUMENT, 2},  {grpc::StatusCode::NOT_FOUND, 3},
      {grpc::StatusCode::ALREADY_EXISTS, 4},    {grpc::StatusCode::FAILED_PRECONDITION, 5},
      {grpc::StatusCode::ABORTED, 6},           {grpc::StatusCode::UNAVAILABLE, 7},
      {grpc::StatusCode::DEADLINE_EXCEEDED, 7}, {grpc::StatusCode::RESOURCE_EXHAUSTED, 8},
      {grpc::StatusCode::DATA_LOSS, 9}};
  const std::string gradient = RawFile("g.raw", {1, 2});
  for (const auto& [status, exit_code] : codes) {
    const RefusingServer server(grpc::Status(status, "as it is told"));
    for (const std::vector<std::string>& command :
         std::vector<std::vector<std::string>>{{"get", "s"}, {"step", "s", gradient}, {"read", "s"}}) {
      std::vector<std::string> arguments = {ADAMANT_CLI, "--target", server.address(), "--timeout=200ms"};
      // Transfers are given more time than this test has.
      if (exit_code == 7 && command[0] != "get") continue;
      arguments.insert(arguments.end(), command.begin(), command.end());
      ChildProgram program(arguments);
      EXPECT_EQ(program.Wait(), exit_code) << status << " " << command[0];
      EXPECT_THAT(program.standard_error().AwaitEnd(), HasSubstr("as it is told"));
    }
  }
}

TEST_F(CliTest, TargetMayComeFromTheEnvironment) {
  ASSERT_EQ(setenv("ADAMANT_TARGET", server_.address().c_str(), 1), 0);
  ChildProgram with({ADAMANT_CLI, "info"});
  EXPECT_EQ(with.Wait(), 0);
  // The flag is closer.
  ChildProgram other({ADAMANT_CLI, "info", "--target=127.0.0.1:1", "--timeout=100ms"});
  EXPECT_EQ(other.Wait(), 7);
  ASSERT_EQ(unsetenv("ADAMANT_TARGET"), 0);
  ChildProgram without({ADAMANT_CLI, "info"});
  EXPECT_EQ(without.Wait(), 2);
  EXPECT_THAT(without.standard_error().AwaitEnd(), HasSubstr("$ADAMANT_TARGET"));
}

TEST_F(CliTest, HelpIsWholeAndEndsWell) {
  ChildProgram help({ADAMANT_CLI, "--help-all"});
  EXPECT_EQ(help.Wait(), 0);
  const std::string text = help.standard_output().AwaitEnd();
  for (const char* command : {"list", "get", "create", "delete", "read", "write", "update", "step", "watch", "info",
                              "export", "import", "plot", "completion"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("Usage: adamant ", command, " ")));
    ChildProgram one({ADAMANT_CLI, command, "--help"});
    EXPECT_EQ(one.Wait(), 0);
    EXPECT_THAT(one.standard_output().AwaitEnd(), HasSubstr(absl::StrCat("Usage: adamant ", command, " ")));
  }
  EXPECT_THAT(text, AllOf(HasSubstr("Exit codes:"), HasSubstr("--optimizer"), HasSubstr("$ADAMANT_TARGET")));
  ChildProgram version({ADAMANT_CLI, "--version"});
  EXPECT_EQ(version.Wait(), 0);
  EXPECT_THAT(version.standard_output().AwaitEnd(), StartsWith("adamant "));
}

TEST_F(CliTest, BashCompletesCommandsFlagsAndTheNamesOfSets) {
  Do({"create", "run/one", "--tensor=w=2"});
  Do({"create", "run/two", "--tensor=w=2"});
  const auto complete = [&](const std::string& words) {
    const std::string script = absl::StrCat(
        "PATH=", std::filesystem::path(ADAMANT_CLI).parent_path().string(), ":$PATH; compopt() { :; }; ",
        "source <(adamant completion bash); COMP_WORDS=(adamant ", words,
        "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=\"${COMP_WORDS[*]}\"; _adamant; echo \"${COMPREPLY[@]}\"");
    ChildProgram bash({"/bin/bash", "-c", script});
    EXPECT_EQ(bash.Wait(), 0) << bash.standard_error().AwaitEnd();
    EXPECT_THAT(bash.standard_error().AwaitEnd(), IsEmpty());
    return bash.standard_output().AwaitEnd();
  };
  EXPECT_EQ(complete("ex"), "export\n");
  EXPECT_EQ(complete("create --opt"), "--optimizer=\n");
  EXPECT_EQ(complete("completion ''"), "bash zsh\n");
  const std::string target = absl::StrCat("--target=", server_.address());
  EXPECT_EQ(complete(target + " get run/"), "run/one run/two\n");
  EXPECT_EQ(complete(target + " get run/t"), "run/two\n");
  EXPECT_EQ(complete("--target=127.0.0.1:1 get run/t"), "\n");
  ChildProgram syntax({"/bin/bash", "-c", absl::StrCat(ADAMANT_CLI, " completion bash | bash -n")});
  EXPECT_EQ(syntax.Wait(), 0) << syntax.standard_error().AwaitEnd();
}

TEST_F(CliTest, ZshCompletesTheSame) {
  if (!std::filesystem::exists("/bin/zsh")) GTEST_SKIP() << "there is no zsh";
  Do({"create", "run/one", "--tensor=w=2"});
  // What zsh gives a completion, and takes from it.
  const auto complete = [&](const std::string& words, int current) {
    const std::string script =
        absl::StrCat("path=(", std::filesystem::path(ADAMANT_CLI).parent_path().string(),
                     " $path); compdef() { :; }; _files() { :; }; ",
                     "compadd() { print -- $*; }; source <(adamant completion zsh); words=(adamant ", words,
                     "); CURRENT=", current, "; _adamant || true");
    ChildProgram zsh({"/bin/zsh", "-f", "-c", script});
    EXPECT_EQ(zsh.Wait(), 0) << zsh.standard_error().AwaitEnd();
    EXPECT_THAT(zsh.standard_error().AwaitEnd(), IsEmpty());
    return zsh.standard_output().AwaitEnd();
  };
  EXPECT_THAT(complete("''", 2), HasSubstr("-- list get "));
  EXPECT_THAT(complete("create --opt", 3), AllOf(HasSubstr("--optimizer="), HasSubstr("--if-not-exists")));
  EXPECT_EQ(complete(absl::StrCat("--target=", server_.address(), " get ''"), 4), "-- run/one\n");
}

// Runs a command with a terminal as its standard error, and returns what it wrote there.
std::string OnATerminal(const std::vector<std::string>& command) {
  int terminal;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) {
    std::vector<char*> arguments;
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(terminal, buffer, sizeof(buffer))) > 0;) text.append(buffer, n);
  int status;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << text;
  close(terminal);
  return text;
}

TEST_F(CliTest, TransfersDrawABarOnATerminalAndNoneInAPipe) {
  Do({"create", "large", "--tensor=w=2000000"});
  const std::vector<std::string> export_command = Command({"export", "large", Path("large.safetensors")});
  const std::vector<std::string> import_command = Command({"import", "large", Path("large.safetensors")});
  EXPECT_THAT(OnATerminal(export_command), AllOf(HasSubstr("\r["), HasSubstr("100 % export 7.6 MiB of 7.6 MiB")));
  EXPECT_THAT(OnATerminal(import_command), AllOf(HasSubstr("\r["), HasSubstr("100 % import 7.6 MiB of 7.6 MiB")));
  const std::vector<std::string> step_command =
      Command({"step", "large", Path("large.safetensors"), "-o", Path("after.safetensors")});
  EXPECT_THAT(OnATerminal(step_command), AllOf(HasSubstr("\r["), HasSubstr("100 % step 15.3 MiB of 15.3 MiB")));
  for (const std::vector<std::string>& command : {export_command, import_command, step_command}) {
    ChildProgram piped(command);
    EXPECT_EQ(piped.Wait(), 0);
    EXPECT_THAT(piped.standard_error().AwaitEnd(), IsEmpty());
    EXPECT_THAT(piped.standard_output().AwaitEnd(), Not(HasSubstr("\r")));
  }
}

}  // namespace
}  // namespace adamant::e2e
