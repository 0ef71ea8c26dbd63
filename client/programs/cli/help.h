// How the program's help looks: as wide as a page, and without what its texts say already.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_HELP_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_HELP_H_

#include <CLI/CLI.hpp>
#include <string>

namespace adamant::programs::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();

  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
  std::string make_description(const CLI::App* app) const override;
  std::string make_footer(const CLI::App* app) const override;
  std::string make_subcommand(const CLI::App* command) const override;
  std::string make_expanded(const CLI::App* command) const override;
};

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_HELP_H_
