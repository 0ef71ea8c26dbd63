#include "tests/e2e/server_process.h"

#include <optional>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace adamant::e2e {
namespace {

constexpr absl::string_view kListening = "listening on ";

}  // namespace

ServerProcess::ServerProcess(const std::vector<std::string>& flags) {
  std::vector<std::string> command = {ADAMANT_SERVER, "--listen=127.0.0.1:0"};
  command.insert(command.end(), flags.begin(), flags.end());
  program_ = std::make_unique<ChildProgram>(command);
  // The last of the lines comes with the last of the addresses; how many there are is in the flags.
  size_t expected = 1;
  for (absl::string_view flag : command) {
    if (absl::ConsumePrefix(&flag, "--listen=")) expected = std::vector<std::string>(absl::StrSplit(flag, ',')).size();
  }
  while (addresses_.size() < expected) {
    const std::optional<std::string> line = program_->standard_output().AwaitLine(kListening);
    if (!line.has_value()) break;
    addresses_.push_back(line->substr(kListening.size()));
  }
}

}  // namespace adamant::e2e
