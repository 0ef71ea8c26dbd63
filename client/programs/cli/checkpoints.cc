// What the server does with all of a set: checkpoint, checkpoints, restore, fork.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/programs/cli/set_flags.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

struct RestoreOptions {
  std::string name;
  std::optional<int64_t> step;
  std::optional<uint64_t> incarnation;
};

struct ForkArguments {
  std::string name, new_name, device, durability;
};

absl::Status MakeCheckpoint(Shell* shell, const std::string& name) {
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  absl::StatusOr<v1::Checkpoint> checkpoint = client->Checkpoint(name);
  if (!checkpoint.ok()) return checkpoint.status();
  if (shell->json()) {
    v1::CheckpointResponse response;
    *response.mutable_checkpoint() = *std::move(checkpoint);
    shell->PrintJson(response);
  } else {
    shell->Print(
        absl::StrCat("checkpoint of ", name, " at step ", checkpoint->step(), ", ", RenderBytes(checkpoint->bytes())));
  }
  return absl::OkStatus();
}

absl::Status ListCheckpoints(Shell* shell, const std::string& name) {
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = client->ListCheckpoints(name);
  if (!checkpoints.ok()) return checkpoints.status();
  if (shell->json()) {
    v1::ListCheckpointsResponse response;
    response.mutable_checkpoints()->Add(checkpoints->begin(), checkpoints->end());
    shell->PrintJson(response);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows;
  for (const v1::Checkpoint& checkpoint : *checkpoints) {
    rows.push_back({absl::StrCat(checkpoint.step()), absl::StrCat(checkpoint.incarnation()),
                    absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(checkpoint.time().seconds()),
                                     absl::UTCTimeZone()),
                    RenderBytes(checkpoint.bytes())});
  }
  shell->Print(RenderTable({"STEP", "INCARNATION", "MADE", "SIZE"}, rows));
  return absl::OkStatus();
}

absl::Status Restore(Shell* shell, const RestoreOptions& options) {
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::ParameterSet> before = client->GetParameterSet(options.name);
  if (!before.ok()) return before.status();
  const absl::StatusOr<std::vector<v1::Checkpoint>> checkpoints = client->ListCheckpoints(options.name);
  if (!checkpoints.ok()) return checkpoints.status();
  const auto chosen = std::ranges::find_if(*checkpoints, [&](const v1::Checkpoint& checkpoint) {
    return (!options.step.has_value() || checkpoint.step() == *options.step) &&
           (!options.incarnation.has_value() || checkpoint.incarnation() == *options.incarnation);
  });
  if (chosen == checkpoints->end()) {
    return absl::NotFoundError(
        absl::StrCat(options.name, " has no such checkpoint; see adamant checkpoints ", options.name));
  }
  // Of this incarnation alone, so that an attempt that is repeated undoes nothing that came behind the first.
  absl::StatusOr<v1::ParameterSet> set = client->RestoreCheckpoint(options.name, *chosen, before->incarnation());
  if (!set.ok()) return set.status();
  if (shell->json()) {
    v1::RestoreCheckpointResponse response;
    *response.mutable_parameter_set() = *std::move(set);
    shell->PrintJson(response);
  } else {
    shell->Print(absl::StrCat("restored ", options.name, " to step ", set->step()));
  }
  return absl::OkStatus();
}

absl::Status Fork(Shell* shell, const ForkArguments& arguments) {
  ForkOptions options = {.device = arguments.device};
  absl::StatusOr<std::optional<v1::Durability>> durability = ReadDurability(arguments.durability);
  if (!durability.ok()) return durability.status();
  options.durability = *std::move(durability);
  absl::StatusOr<Client> client = shell->ConnectForTransfers();
  if (!client.ok()) return client.status();
  absl::StatusOr<v1::ParameterSet> set = client->Fork(arguments.name, arguments.new_name, options);
  if (!set.ok()) return set.status();
  if (shell->json()) {
    v1::ForkResponse response;
    *response.mutable_parameter_set() = *std::move(set);
    shell->PrintJson(response);
  } else {
    shell->Print(
        absl::StrCat("forked ", arguments.name, " as ", arguments.new_name, ", at step ", set->step(), KeptText(*set)));
  }
  return absl::OkStatus();
}

}  // namespace

void AddCheckpointCommands(CLI::App* app, Shell* shell, Command* chosen) {
  const auto made = std::make_shared<std::string>();
  CLI::App* const checkpoint = app->add_subcommand(
      "checkpoint", "Has the server put all of a set on its disk, which `restore` takes the set back to.");
  checkpoint->add_option("SET", *made, "Name of the set.")->required();
  checkpoint->callback([=] { *chosen = [=] { return MakeCheckpoint(shell, *made); }; });

  const auto listed = std::make_shared<std::string>();
  CLI::App* const checkpoints =
      app->add_subcommand("checkpoints", "Lists what a set can be taken back to, the newest first.");
  checkpoints->add_option("SET", *listed, "Name of the set.")->required();
  checkpoints->callback([=] { *chosen = [=] { return ListCheckpoints(shell, *listed); }; });

  const auto options = std::make_shared<RestoreOptions>();
  CLI::App* const restore = app->add_subcommand("restore", "Takes a set back to one of its checkpoints.");
  restore->add_option("SET", options->name, "Name of the set.")->required();
  restore->add_option("STEP", options->step, "The step of the checkpoint. Default: the newest checkpoint.");
  restore->add_option("--incarnation", options->incarnation,
                      "The incarnation of the checkpoint, where several are of one step. Default: the newest of them.");
  restore->callback([=] { *chosen = [=] { return Restore(shell, *options); }; });

  const auto arguments = std::make_shared<ForkArguments>();
  CLI::App* const fork = app->add_subcommand("fork", "Makes a new set that is what another one is now.");
  fork->add_option("SET", arguments->name, "Name of the set that there is.")->required();
  fork->add_option("NEW", arguments->new_name, "Name of the new one.")->required();
  fork->add_option("--device", arguments->device, "Where it lives: cpu or cuda:N. Default: where the other one does.");
  AddDurability(fork, &arguments->durability, "as of the other one");
  fork->callback([=] { *chosen = [=] { return Fork(shell, *arguments); }; });
}

}  // namespace adamant::programs::cli
