// What all of the programs do with their command line.
#ifndef ADAMANT_CLIENT_COMMAND_LINE_COMMAND_LINE_H_
#define ADAMANT_CLIENT_COMMAND_LINE_COMMAND_LINE_H_

#include <vector>

#include "absl/strings/string_view.h"

namespace adamant {

// Parses the flags of a program, all of which are defined in `main_file`, the __FILE__ of its main. Returns what is no
// flag, the program's own name first. To be called once, first of all.
//
// Does not return after
//   --help, -h    prints the name, `usage` and each flag with its default and its meaning to stdout, and exits with 0;
//   --version     prints name and version to stdout, and exits with 0;
//   a wrong flag  says what is wrong with it on stderr, and exits with 1.
std::vector<char*> ParseCommandLine(int argc, char** argv, absl::string_view usage, absl::string_view main_file);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_COMMAND_LINE_COMMAND_LINE_H_
