// adamant: what is on a server, from a shell.
//
// What was asked for goes to stdout, all else to stderr.
#include <adamant/error.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/programs/cli/help.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

constexpr char kDescription[] =
    "Looks at parameter sets on an Adamant server, makes and changes them, and moves tensors between them and files.\n"
    "\n"
    "  adamant create demo --from model.safetensors --optimizer adamw --lr 3e-4\n"
    "  adamant step demo gradient.safetensors\n"
    "  adamant export demo checkpoint.safetensors --optimizer-state\n"
    "\n"
    "Files of tensors are .safetensors, .npy (one tensor), and .raw or .bin (little-endian fp32); fp16 and bf16 are\n"
    "widened exactly. `adamant COMMAND --help` says more of each command.";

// What the server says is wrong, and by which of its reasons.
std::string Message(const absl::Status& status) {
  const v1::ErrorDetail detail = GetErrorDetail(status);
  if (detail.reason() == v1::ERROR_REASON_UNSPECIFIED) return std::string(status.message());
  return absl::StrCat(status.message(), " (", RenderEnum(v1::ErrorReason_Name(detail.reason()), "ERROR_REASON_"), ")");
}

int Main(int argc, char** argv) {
  CLI::App app(kDescription, "adamant");
  Shell shell;
  Command chosen;
  shell.AddOptions(&app);
  app.set_version_flag("--version", absl::StrCat("adamant ", ADAMANT_VERSION), "Prints the version.");
  app.set_help_flag("-h,--help", "Prints this, or what there is to say of a command.");
  app.require_subcommand(1);
  app.fallthrough();
  app.formatter(std::make_shared<HelpFormatter>());
  AddInspectCommands(&app, &shell, &chosen);
  AddConfigureCommands(&app, &shell, &chosen);
  AddTransferCommands(&app, &shell, &chosen);
  AddCheckpointCommands(&app, &shell, &chosen);
  AddReplayCommand(&app, &chosen);
  AddStepCommands(&app, &shell, &chosen);
  AddPlotCommand(&app, &shell, &chosen);
  AddCompletionCommand(&app, &shell, &chosen);
  // Last: commands inherit what is there when they are added.
  app.set_help_all_flag("--help-all", "Prints what there is to say of every command.");
  app.footer(kExitCodesHelp);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);
    const std::vector<std::string> unknown = app.remaining();
    shell.console().Fail(absl::StrCat(app.get_subcommands().empty() && !unknown.empty()
                                          ? absl::StrCat("there is no command '", unknown.front(), "'")
                                          : error.what(),
                                      "; see adamant --help"));
    return kWrongUsage;
  }
  const absl::Status status = chosen();
  if (!status.ok()) {
    shell.console().Fail(Message(status));
    return ExitCodeOf(status);
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    shell.console().Fail("cannot write to standard output");
    return kOtherError;
  }
  return shell.exit_code();
}

}  // namespace
}  // namespace adamant::programs::cli

int main(int argc, char** argv) { return adamant::programs::cli::Main(argc, argv); }
