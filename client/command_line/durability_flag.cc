#include "client/command_line/durability_flag.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"

namespace adamant {

absl::StatusOr<v1::Durability> ParseDurability(absl::string_view text) {
  const absl::Status unknown = absl::InvalidArgumentError(absl::StrCat(
      "expected nothing, every_step, every_step:STEPS, or checkpoints:STEPS,TIME with one of them or both, got ",
      text));
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  const bool has_terms = parts.first.size() < text.size();
  v1::Durability durability;
  if (parts.first == "nothing" && !has_terms) {
    durability.mutable_nothing();
    return durability;
  }
  if (parts.first == "every_step") {
    int32_t steps = 0;
    // The protocol's 0 is its default.
    if (has_terms && (!absl::SimpleAtoi(parts.second, &steps) || steps == 0)) return unknown;
    durability.mutable_every_step()->set_journal_steps(steps);
    return durability;
  }
  if (parts.first != "checkpoints" || !has_terms) return unknown;
  v1::Checkpoints& terms = *durability.mutable_checkpoints();
  for (const absl::string_view term : absl::StrSplit(parts.second, ',')) {
    int64_t steps = 0;
    absl::Duration time;
    if (absl::SimpleAtoi(term, &steps)) {
      if (terms.has_steps()) return unknown;
      terms.set_steps(steps);
    } else if (absl::ParseDuration(term, &time)) {
      if (terms.has_seconds()) return unknown;
      terms.set_seconds(absl::ToDoubleSeconds(time));
    } else {
      return unknown;
    }
  }
  return durability;
}

std::string DurabilityText(const v1::Durability& durability) {
  if (durability.has_every_step()) {
    const int32_t steps = durability.every_step().journal_steps();
    return steps == 0 ? "every_step" : absl::StrCat("every_step:", steps);
  }
  if (!durability.has_checkpoints()) return "nothing";
  const v1::Checkpoints& terms = durability.checkpoints();
  std::string text = "checkpoints:";
  if (terms.has_steps()) absl::StrAppend(&text, terms.steps(), terms.has_seconds() ? "," : "");
  if (terms.has_seconds()) absl::StrAppend(&text, absl::FormatDuration(absl::Seconds(terms.seconds())));
  return text;
}

}  // namespace adamant
