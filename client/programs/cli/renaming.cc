#include "client/programs/cli/renaming.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace adamant::programs::cli {

absl::StatusOr<Renaming> Renaming::Parse(const std::vector<std::string>& rules) {
  Renaming renaming;
  for (const std::string& text : rules) {
    const auto wrong = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("--rename: expected ", why, ", got '", text, "'"));
    };
    const size_t equals = text.find('=');
    if (equals == std::string::npos || text.size() < 2) return wrong("FROM=TO");
    const std::vector<std::string> from = absl::StrSplit(text.substr(0, equals), '*');
    const std::vector<std::string> to = absl::StrSplit(text.substr(equals + 1), '*');
    if (from.size() > 2 || from.size() != to.size()) return wrong("one * in both of FROM=TO, or none");
    const bool any = from.size() == 2;
    if (!any && (from[0].empty() || to[0].empty())) return wrong("two names in FROM=TO");
    renaming.rules_.push_back(
        {.text = text, .any = any, .from = {from[0], any ? from[1] : ""}, .to = {to[0], any ? to[1] : ""}});
  }
  return renaming;
}

const Renaming::Rule* Renaming::Find(absl::string_view name) const {
  const auto found = std::find_if(rules_.begin(), rules_.end(), [&](const Rule& rule) {
    if (!rule.any) return name == rule.from.before;
    return name.size() >= rule.from.before.size() + rule.from.behind.size() &&
           absl::StartsWith(name, rule.from.before) && absl::EndsWith(name, rule.from.behind);
  });
  return found == rules_.end() ? nullptr : &*found;
}

std::string Renaming::Apply(absl::string_view name) const {
  const Rule* const rule = Find(name);
  if (rule == nullptr) return std::string(name);
  name.remove_prefix(rule->from.before.size());
  name.remove_suffix(rule->from.behind.size());
  return absl::StrCat(rule->to.before, name, rule->to.behind);
}

absl::Status Renaming::Check(const std::vector<std::string>& names) const {
  std::set<const Rule*> used;
  std::map<std::string, std::string> renamed;
  for (const std::string& name : names) {
    used.insert(Find(name));
    const auto [other, is_new] = renamed.emplace(Apply(name), name);
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat("--rename: the tensors '", other->second, "' and '", name,
                                                     "' would both be '", other->first, "'"));
    }
  }
  for (const Rule& rule : rules_) {
    if (used.contains(&rule)) continue;
    return absl::InvalidArgumentError(absl::StrCat("--rename: '", rule.text, "' is for no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace adamant::programs::cli
