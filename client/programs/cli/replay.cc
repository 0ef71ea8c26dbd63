// Steps made again, from a server's data directory: by a program that the server comes with.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

constexpr char kProgram[] = "adamant-replay";

struct ReplayFlags {
  std::string directory, isa;
  bool steps = false;
};

// The program beside this one, or, where there is none, one that is found by PATH.
std::string FindProgram() {
  std::error_code error;
  const std::filesystem::path beside = std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / kProgram;
  return std::filesystem::exists(beside, error) ? beside.string() : kProgram;
}

// Returns only if it cannot be started.
absl::Status Replay(const ReplayFlags& flags) {
  std::vector<std::string> command = {FindProgram()};
  if (flags.steps) command.push_back("--steps");
  if (!flags.isa.empty()) command.push_back(absl::StrCat("--isa=", flags.isa));
  command.push_back("--");
  command.push_back(flags.directory);
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  std::fflush(nullptr);
  execvp(arguments[0], arguments.data());
  return absl::NotFoundError(
      absl::StrCat(command[0], ", which comes with adamant-server, cannot be started: ", std::strerror(errno)));
}

}  // namespace

void AddReplayCommand(CLI::App* app, Command* chosen) {
  const auto flags = std::make_shared<ReplayFlags>();
  CLI::App* const replay = app->add_subcommand(
      "replay", "Makes the steps again that a stopped server's data directory has, and checks what they lead to.");
  replay->add_option("DIR", flags->directory, "The server's --data_dir, or a copy of it.")->required();
  replay->add_flag("--steps", flags->steps, "Prints a line for each step: set, step, and its digest, if it has one.");
  replay->add_option("--isa", flags->isa, "Instruction set of the kernels: scalar, avx2 or avx512.");
  replay->footer("Needs no server, and changes nothing. Exits with 1 when a set is not what it was.");
  replay->callback([=] { *chosen = [=] { return Replay(*flags); }; });
}

}  // namespace adamant::programs::cli
