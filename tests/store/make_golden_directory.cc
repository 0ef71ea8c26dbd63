// make_golden_directory FOLDER: makes data directories as this version leaves them, and says what is in them: killed,
// as kill -9 leaves it, and finished, after a clean stop. See golden/README.md.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/sparse_steps.h"
#include "tests/store/golden_state.h"
#include "tests/store/store_life.h"

namespace adamant::store {
namespace {

using core::ParameterSet;
using core::Values;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::_Exit(1);
}

StoreOptions In(const std::filesystem::path& directory) {
  StoreOptions options;
  options.directory = directory.string();
  return options;
}

// Few bits, so that the files are small when they are compressed.
Values PlainGradient(ParameterSet* set, int step) {
  Values gradient(set->schema().parameter_count());
  for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<float>((i + step) % 5) / 4 - 0.5F;
  return gradient;
}

// One step, each time in another way.
void TakeStep(ParameterSet* set, const std::string& name, int step) {
  v1::StepHeader header = core::Header(GoldenStepId(name, step), set->Describe().step());
  if (step % 4 == 1) header.set_grad_scale(8);
  if (step % 4 == 2) header.add_tensors(0);
  if (step % 4 == 3) {
    v1::GroupOverride* const override = header.add_overrides();
    override->set_group("fast");
    override->set_learning_rate(0.125);
  }
  Check(core::Step(set, header, PlainGradient(set, step)).status());
}

void TakeRows(ParameterSet* set, const std::string& name, int step) {
  const std::vector<core::BroughtRows> rows = {core::RandomRows(set->schema(), core::kTable, 3, step)};
  const v1::StepHeader header =
      core::WithRows(core::Header(GoldenStepId(name, step), set->Describe().step()), {core::kBias}, rows);
  Check(core::StepRows(set, header, {core::kBias}, PlainGradient(set, step), rows).status());
}

void TakeRound(ParameterSet* set, const std::string& name, int step) {
  std::vector<core::StepDelivery> contributions;
  for (int rank = 0; rank < 2; ++rank) {
    v1::StepHeader header = core::Header(rank == 0 ? GoldenStepId(name, step) : absl::StrCat("rank 1 of ", step));
    header.set_expected_step(set->Describe().step());
    header.set_rank(rank);
    header.set_round(set->Describe().round());
    header.set_weight(rank + 1);
    contributions.push_back(core::BeginStep(set, header));
    contributions.back().Await();
    Check(contributions.back().Send(core::Cut(set->schema(), core::kBlockElements), PlainGradient(set, step + rank)));
    Check(contributions.back().Complete());
  }
  for (core::StepDelivery& contribution : contributions) Check(contribution.Take().status());
}

void Configure(ParameterSet* set, double learning_rate) {
  v1::UpdateParameterGroupRequest request;
  request.mutable_group()->set_name("slow");
  request.mutable_group()->set_learning_rate(learning_rate);
  request.mutable_update_mask()->add_paths("learning_rate");
  Check(core::Update(set, request).status());
}

// All kinds of records and files: changes in records and in slots, of some tensors and of rows, of rounds,
// configurations, writes of parameters and of everything, a growth, checkpoints, and a set that is deleted.
void Live(StoreServer* server) {
  for (const std::string& name : kGoldenSets) {
    v1::ParameterSetSpec spec = name == "rows" ? TablesSpec(name) : core::SmallSpec(name);
    // 1,101 parameters, whose gradients take more than a record has.
    if (name == "slots") spec.mutable_tensors(0)->set_shape(0, 518);
    if (name == "rounds") spec.mutable_workers()->set_count(2);
    if (name == "points") {
      spec.mutable_groups(0)->mutable_sgd()->set_momentum(0.875);
      spec.mutable_durability()->mutable_checkpoints()->set_steps(1000);
    } else {
      spec.mutable_durability()->mutable_every_step()->set_journal_steps(4);
    }
    Check(server->Create(spec));
  }
  for (int step = 1; step <= kGoldenSteps; ++step) {
    for (const std::string& name : kGoldenSets) {
      const std::shared_ptr<ParameterSet> set = server->Find(name);
      if (name == "rows") {
        TakeRows(set.get(), name, step);
      } else if (name == "rounds") {
        TakeRound(set.get(), name, step);
      } else {
        TakeStep(set.get(), name, step);
      }
      if (step == 3) {
        core::Arrays written = *core::FetchState(set.get());
        for (float& value : written.parameters) value = 0.5F;
        Check(core::Write(set.get(), core::ParametersHeader("parameters"), written).status());
      }
      if (step == 5 && name == "inline") {
        core::Arrays written = *core::FetchState(set.get());
        written.update_counts.clear();
        Check(core::Write(set.get(), core::FullHeader(100, "everything"), written).status());
      }
      if (step == 6 && name == "slots") {
        v1::AddTensorsRequest request = core::Tensors({700});
        request.mutable_tensors(0)->set_name("added");
        Check(core::AddTensors(set.get(), request).status());
      }
      if (step == 8) Configure(set.get(), 0.0625);
      if (step == 9 && name != "inline") Check(AwaitCheckpoint(set.get()));
      if (step == 10) Configure(set.get(), 0.03125);
    }
  }
  v1::ParameterSetSpec gone = core::SmallSpec("gone");
  gone.mutable_durability()->mutable_every_step()->set_journal_steps(4);
  Check(server->Create(gone));
  TakeStep(server->Find("gone").get(), "gone", 1);
  Check(server->Delete("gone"));
}

// Lives in a process of its own, and ends it as asked.
void LiveInAChild(const std::filesystem::path& directory, bool is_killed) {
  const pid_t child = fork();
  if (child == 0) {
    {
      StoreServer server(PosixFileSystem(), In(directory));
      Check(server.status());
      Live(&server);
      if (is_killed) std::_Exit(0);
      server.store()->Finish(server.registry(), absl::Hours(1));
    }
    std::_Exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) Check(absl::InternalError("the life has failed"));
}

void Make(const std::filesystem::path& folder, const std::string& name) {
  const std::filesystem::path directory = folder / name;
  const std::filesystem::path copy = folder / "copy";
  std::filesystem::remove_all(directory);
  std::filesystem::remove_all(copy);
  LiveInAChild(directory, name == "killed");
  std::filesystem::copy(directory, copy, std::filesystem::copy_options::recursive);
  {
    StoreServer server(PosixFileSystem(), In(copy));
    Check(server.status());
    std::ofstream(folder / (name + ".txt")) << GoldenStateOf(&server);
  }
  std::filesystem::remove_all(copy);
  // The same bytes for the same files.
  const std::string tar = absl::StrCat("cd ", folder.string(), " && tar --sort=name --owner=0 --group=0 -c ", name,
                                       " | gzip -9n > ", name, ".tar.gz && rm -r ", name);
  if (std::system(tar.c_str()) != 0) Check(absl::InternalError(tar));
}

}  // namespace
}  // namespace adamant::store

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_golden_directory FOLDER\n";
    return 1;
  }
  std::filesystem::create_directories(argv[1]);
  adamant::store::Make(argv[1], "killed");
  adamant::store::Make(argv[1], "finished");
}
