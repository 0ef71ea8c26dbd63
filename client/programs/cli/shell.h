// What every command of the program `adamant` is given, and how it answers.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_SHELL_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_SHELL_H_

#include <adamant/client.h>
#include <google/protobuf/message.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/programs/console.h"

namespace CLI {
class App;
}

namespace adamant::programs::cli {

// The exit codes of the program; they are part of its interface.
enum ExitCode {
  kDone = 0,
  kOtherError = 1,
  kWrongUsage = 2,
  kNotFound = 3,
  kAlreadyExists = 4,
  kPrecondition = 5,
  kConflict = 6,
  kUnavailable = 7,
  kNoRoom = 8,
  kDataLoss = 9,
  kNotApplied = 10,
};

// What a user is told of the codes, a line each.
extern const char kExitCodesHelp[];

ExitCode ExitCodeOf(const absl::Status& status);

// After `error`, which came between the creation of a set and its first parameters: deletes it, of which nobody has any
// use. Returns the error, and says so if the set is still there.
absl::Status Undo(const v1::ParameterSet& created, const absl::Status& error, Client* client);

// Rows below a line of titles, as wide as what is in them. Columns that have nothing but numbers stand to the right.
std::string RenderTable(const std::vector<std::string>& titles, const std::vector<std::vector<std::string>>& rows);

// `2x3`, or `scalar`: a tensor's shape as the command line has it.
std::string RenderShape(absl::Span<const int64_t> shape);
absl::StatusOr<std::vector<int64_t>> ParseShape(absl::string_view text);
// Bytes as `1.5 MiB`.
std::string RenderBytes(int64_t bytes);
// Shortly, and exactly enough to tell numbers of its kind apart.
std::string RenderNumber(double number);
// An enum's value without what all of its values begin with: `READY` of PARAMETER_SET_STATE_READY.
std::string RenderEnum(absl::string_view name, absl::string_view prefix);
// Protobuf's JSON with the protocol's own names of fields, all of them. On one line, or indented, without an end.
std::string RenderJson(const google::protobuf::Message& message, bool one_line);
// A JSON string with its quotes.
std::string QuoteJson(absl::string_view text);

// The options of all commands. Thread-compatible.
class Shell {
 public:
  Shell() : console_("adamant") {}

  // Adds the options of all commands.
  void AddOptions(CLI::App* app);

  bool json() const { return json_; }
  Console& console() { return console_; }
  // A client of the target, for calls that --timeout is for, with their retries; INVALID_ARGUMENT if none is named.
  absl::StatusOr<Client> Connect();
  // The same for steps, reads and writes, which take as long as they need.
  absl::StatusOr<Client> ConnectForTransfers();

  // Prints to stdout. The text has no end of line.
  void Print(absl::string_view text) { console_.Print(text); }
  // The message as JSON.
  void PrintJson(const google::protobuf::Message& message) { Print(RenderJson(message, /*one_line=*/false)); }
  // Draws a bar on a terminal, if stderr is one, while elements are transferred.
  Progress ShowProgress(const std::string& what);

  // A command that succeeds may still have something to say by the exit code.
  void set_exit_code(ExitCode code) { exit_code_ = code; }
  ExitCode exit_code() const { return exit_code_; }

 private:
  absl::StatusOr<Client> ConnectWithin(absl::Duration least_transfer_timeout);

  Console console_;
  std::string target_;
  std::string timeout_ = "10s";
  bool json_ = false;
  ExitCode exit_code_ = kDone;
};

// Runs a command that was parsed.
using Command = std::function<absl::Status()>;

// Each adds its commands to `app`. When one of them is parsed, it becomes `chosen`. All arguments outlive the parsing
// and the command.
void AddInspectCommands(CLI::App* app, Shell* shell, Command* chosen);
void AddConfigureCommands(CLI::App* app, Shell* shell, Command* chosen);
void AddTransferCommands(CLI::App* app, Shell* shell, Command* chosen);
void AddCheckpointCommands(CLI::App* app, Shell* shell, Command* chosen);
void AddReplayCommand(CLI::App* app, Command* chosen);
void AddStepCommands(CLI::App* app, Shell* shell, Command* chosen);
void AddPlotCommand(CLI::App* app, Shell* shell, Command* chosen);
void AddCompletionCommand(CLI::App* app, Shell* shell, Command* chosen);

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_SHELL_H_
