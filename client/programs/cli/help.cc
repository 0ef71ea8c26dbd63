#include "client/programs/cli/help.h"

#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace adamant::programs::cli {
namespace {

constexpr size_t kPageWidth = 100;
constexpr size_t kColumnWidth = 28;

// Breaks text into lines of the right column.
std::string Wrap(const std::string& text) {
  std::string wrapped;
  size_t used = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (used > 0 && used + 1 + word.size() > kPageWidth - kColumnWidth) {
      wrapped += '\n';
      used = 0;
    }
    absl::StrAppend(&wrapped, used > 0 ? " " : "", word);
    used += (used > 0 ? 1 : 0) + word.size();
  }
  return wrapped;
}

}  // namespace

HelpFormatter::HelpFormatter() { column_width(kColumnWidth); }

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  if (option->get_positional() || option->get_items_expected_max() == 0) return "";
  // Checks add their own names behind a colon.
  const std::string type = option->get_type_name().substr(0, option->get_type_name().find(':'));
  if (type == "TEXT") return " NAME";
  if (type == "FLOAT") return " X";
  if (type == "INT") return " N";
  return absl::StrCat(" ", type);
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  std::string text = option->get_description();
  if (!option->get_default_str().empty()) absl::StrAppend(&text, " Default: ", option->get_default_str(), ".");
  if (!option->get_envname().empty()) absl::StrAppend(&text, " Default: $", option->get_envname(), ".");
  return Wrap(text);
}

std::string HelpFormatter::make_description(const CLI::App* app) const {
  return absl::StrCat(app->get_description(), "\n\n");
}

std::string HelpFormatter::make_footer(const CLI::App* app) const {
  if (app->get_parent() == nullptr) return app->get_footer();
  return absl::StrCat(app->get_footer(), app->get_footer().empty() ? "" : "\n",
                      "Options of all commands (--target, --timeout, --json) and exit codes: adamant --help\n");
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  std::ostringstream out;
  CLI::detail::format_help(out, command->get_name(), Wrap(command->get_description()), kColumnWidth);
  return out.str();
}

// A command within the help of all.
std::string HelpFormatter::make_expanded(const CLI::App* command) const {
  return absl::StrCat(make_usage(command, absl::StrCat("adamant ", command->get_name())), "\n",
                      command->get_description(), "\n", make_positionals(command),
                      make_groups(command, CLI::AppFormatMode::Sub), command->get_footer().empty() ? "" : "\n",
                      command->get_footer(), command->get_footer().empty() ? "" : "\n");
}

}  // namespace adamant::programs::cli
