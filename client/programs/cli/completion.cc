// Completion for shells, made of the commands themselves, so that none is forgotten.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/programs/cli/shell.h"

namespace adamant::programs::cli {
namespace {

// The long names of an app's options, `--lr=` for those that take a value.
std::vector<std::string> Flags(const CLI::App* app) {
  std::vector<std::string> flags;
  for (const CLI::Option* const option : app->get_options()) {
    // Of a command the program's own are in the list anyhow.
    if (app->get_parent() != nullptr && option == app->get_help_ptr()) continue;
    for (const std::string& name : option->get_lnames()) {
      flags.push_back(absl::StrCat("--", name, option->get_items_expected_max() > 0 ? "=" : ""));
    }
  }
  return flags;
}

bool TakesSet(const CLI::App* command) {
  for (const CLI::Option* const option : command->get_options()) {
    if (option->get_positional() && (option->get_name() == "SET" || option->get_name() == "PREFIX")) return true;
  }
  return false;
}

// One case for each command: what may follow it. Names of sets that are to be are no help.
std::string Cases(const CLI::App* app) {
  const std::string common = absl::StrJoin(Flags(app), " ");
  std::string cases;
  for (const CLI::App* const command : app->get_subcommands(nullptr)) {
    absl::StrAppend(&cases, "    ", command->get_name(), ") flags='", common, " ", absl::StrJoin(Flags(command), " "),
                    "'", TakesSet(command) && command->get_name() != "create" ? " sets=1" : "",
                    command->get_name() == "completion" ? " names='bash zsh'" : "", " ;;\n");
  }
  return cases;
}

std::string Commands(const CLI::App* app) {
  return absl::StrJoin(app->get_subcommands(nullptr), " ",
                       [](std::string* out, const CLI::App* command) { absl::StrAppend(out, command->get_name()); });
}

// What both shells do alike. The server that the line names is the one that is asked, for at most a second.
std::string Body(const CLI::App* app) {
  return absl::StrCat(
      "  for word in \"${before[@]}\"; do\n"
      "    case $word in ",
      absl::StrJoin(app->get_subcommands(nullptr), "|",
                    [](std::string* out, const CLI::App* command) { absl::StrAppend(out, command->get_name()); }),
      ") command=$word; break ;; esac\n"
      "  done\n"
      "  case $command in\n"
      "    '') flags='",
      absl::StrJoin(Flags(app), " "), "' names='", Commands(app), "' ;;\n", Cases(app),
      "  esac\n"
      "  if [[ $sets && $current != -* ]]; then\n"
      "    target=()\n"
      "    [[ $line =~ '--target[= ]([^ ]+)' ]] && target=(--target \"$matched\")\n"
      "    names=$(adamant list --quiet --timeout=1s \"${target[@]}\" 2>/dev/null)\n"
      "  fi\n");
}

std::string Bash(const CLI::App* app) {
  std::string body = Body(app);
  // Bash takes a quoted expression for a text, and zsh one without quotes for several words.
  body.replace(body.find("'--target[= ]([^ ]+)'"), sizeof("'--target[= ]([^ ]+)'") - 1, "--target[=\\ ]([^\\ ]+)");
  body.replace(body.find("$matched"), sizeof("$matched") - 1, "${BASH_REMATCH[1]}");
  return absl::StrCat(
      "# Completes adamant in bash: source <(adamant completion bash)\n"
      "_adamant() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} line=$COMP_LINE command= flags= names= sets= word\n"
      "  local -a before=(\"${COMP_WORDS[@]:1:COMP_CWORD-1}\") target\n",
      body,
      "  if [[ $current == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$flags\" -- \"$current\"))\n"
      "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n"
      "  else\n"
      "    COMPREPLY=($(compgen -W \"$names\" -- \"$current\"))\n"
      "  fi\n"
      "  return 0\n"
      "}\n"
      "complete -o default -F _adamant adamant");
}

std::string Zsh(const CLI::App* app) {
  std::string body = Body(app);
  body.replace(body.find("$matched"), sizeof("$matched") - 1, "${match[1]}");
  return absl::StrCat(
      "#compdef adamant\n"
      "# Completes adamant in zsh: source <(adamant completion zsh)\n"
      "_adamant() {\n"
      "  local current=${words[CURRENT]} line=\"${words[*]}\" command= flags= names= sets= word\n"
      "  local -a before=(\"${(@)words[2,CURRENT-1]}\") target match\n",
      body,
      "  if [[ $current == -* ]]; then\n"
      "    local -a values=(${(M)${=flags}:#*=}) plain=(${${=flags}:#*=})\n"
      "    compadd -S '' -- $values\n"
      "    compadd -- $plain\n"
      "  elif [[ -n $names ]]; then\n"
      "    compadd -- ${=names}\n"
      "  fi\n"
      "  [[ $current == -* || -z $command ]] || _files\n"
      "}\n"
      "# Where zsh finds it by itself, this file is the function, when it is called for the first time.\n"
      "if [[ ${funcstack[1]} == _adamant ]]; then _adamant; else compdef _adamant adamant; fi");
}

}  // namespace

void AddCompletionCommand(CLI::App* app, Shell* shell, Command* chosen) {
  const auto name = std::make_shared<std::string>();
  CLI::App* const completion = app->add_subcommand(
      "completion",
      "Prints what makes a shell complete commands, flags, and names of sets, which it asks the server for.");
  completion->add_option("SHELL", *name, "bash or zsh.")->required()->check(CLI::IsMember({"bash", "zsh"}));
  completion->footer("In ~/.bashrc:  source <(adamant completion bash)");
  completion->callback([=] {
    *chosen = [=] {
      shell->Print(*name == "bash" ? Bash(app) : Zsh(app));
      return absl::OkStatus();
    };
  });
}

}  // namespace adamant::programs::cli
