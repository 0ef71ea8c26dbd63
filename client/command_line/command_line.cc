// Abseil's --help shows flags by the names of files, of which it expects a program's to be called as the program is,
// and exits with 1.
#include "client/command_line/command_line.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/str_cat.h"

namespace adamant {
namespace {

bool AsksForHelp(absl::string_view argument) {
  return argument == "--help" || argument == "-help" || argument == "-h" || argument == "--help=true";
}

void PrintHelp(absl::string_view name, absl::string_view usage, absl::string_view main_file) {
  std::cout << name << ": " << usage << "\n\nFlags, with their defaults:\n";
  std::map<absl::string_view, const absl::CommandLineFlag*> flags;
  for (const auto& [flag_name, flag] : absl::GetAllFlags()) {
    if (flag->Filename() == main_file) flags[flag_name] = flag;
  }
  for (const auto& [flag_name, flag] : flags) {
    std::cout << "  --" << flag_name << "=" << flag->DefaultValue() << "\n      " << flag->Help() << "\n";
  }
}

}  // namespace

std::vector<char*> ParseCommandLine(int argc, char** argv, absl::string_view usage, absl::string_view main_file) {
  const absl::string_view path = argv[0];
  const std::string name(path.substr(path.rfind('/') + 1));
  absl::FlagsUsageConfig config;
  config.version_string = [name] { return absl::StrCat(name, " ", ADAMANT_VERSION, "\n"); };
  config.normalize_filename = [](absl::string_view file) { return std::string(file); };
  config.contains_helpshort_flags = [file = std::string(main_file)](absl::string_view other) { return other == file; };
  config.contains_help_flags = config.contains_helppackage_flags = config.contains_helpshort_flags;
  absl::SetFlagsUsageConfig(config);
  absl::SetProgramUsageMessage(usage);

  char** const flags_end = std::find(argv + 1, argv + argc, absl::string_view("--"));
  if (std::any_of(argv + 1, flags_end, AsksForHelp)) {
    PrintHelp(name, usage, main_file);
    std::exit(0);
  }
  return absl::ParseCommandLine(argc, argv);
}

}  // namespace adamant
