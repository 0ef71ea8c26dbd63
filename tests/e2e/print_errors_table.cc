// print_errors_table TABLE [DOCUMENT]
//
// Prints the reasons of tests/errors.textproto as docs/protocol.md shows them. With a DOCUMENT, compares: the table
// must stand there between its two markers, or the exit code is 1.
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include "tests/e2e/errors_table.h"

namespace {

constexpr char kBegin[] = "<!-- errors:begin -->\n";
constexpr char kEnd[] = "<!-- errors:end -->";

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: " << argv[0] << " TABLE [DOCUMENT]\n";
    return 1;
  }
  const std::string markdown = adamant::e2e::MarkdownOf(adamant::e2e::LoadErrorsTable(argv[1]));
  if (argc == 2) {
    std::cout << markdown;
    return 0;
  }
  std::ifstream file(argv[2]);
  const std::string readme((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (readme.find(kBegin + markdown + kEnd) != std::string::npos) return 0;
  std::cerr << argv[2] << ": expected between " << kBegin << "and " << kEnd << " exactly this:\n" << markdown;
  return 1;
}
