// What tensors are called elsewhere: `--rename`.
#ifndef ADAMANT_CLIENT_PROGRAMS_CLI_RENAMING_H_
#define ADAMANT_CLIENT_PROGRAMS_CLI_RENAMING_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace adamant::programs::cli {

// What the help of a command says of its rules.
inline constexpr char kRenameHelp[] =
    "Renames tensors: FROM=TO for one of them, or with a * in both, which stands for any text: 'model.*=*'. May be "
    "repeated; the first that fits a name decides, and names that none fits stay.";

// Immutable and thread-safe.
class Renaming {
 public:
  // Renames nothing.
  Renaming() = default;

  // Understands rules as kRenameHelp says: FROM ends at the first `=`. INVALID_ARGUMENT, naming the rule, for another
  // form.
  static absl::StatusOr<Renaming> Parse(const std::vector<std::string>& rules);

  std::string Apply(absl::string_view name) const;
  // Whether each rule decides on one of `names` at least, and no two of them become one. INVALID_ARGUMENT, which says
  // which, otherwise.
  absl::Status Check(const std::vector<std::string>& names) const;

 private:
  // A name, or what stands before and behind the text that a * is for.
  struct Pattern {
    std::string before;
    std::string behind;
  };
  struct Rule {
    std::string text;
    bool any;  // has a *
    Pattern from;
    Pattern to;
  };

  // The rule that decides on the name; null if none does.
  const Rule* Find(absl::string_view name) const;

  std::vector<Rule> rules_;
};

}  // namespace adamant::programs::cli

#endif  // ADAMANT_CLIENT_PROGRAMS_CLI_RENAMING_H_
