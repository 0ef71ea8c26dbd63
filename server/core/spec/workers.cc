#include "server/core/spec/workers.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/spec/range.h"

namespace adamant::core {
namespace {

constexpr double kDefaultTimeoutSeconds = 60;
constexpr double kMaxTimeoutSeconds = 86400;
constexpr int kDefaultWindow = 2;
constexpr double kMinNorm = 0x1p-40;
constexpr double kMaxNorm = 0x1p64;

// Whether `value` is in [lowest, highest].
absl::Status ValidateCount(int value, int lowest, int highest, const std::string& field) {
  if (value >= lowest && value <= highest) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("[", lowest, ", ", highest, "]"), absl::StrCat(value));
}

}  // namespace

absl::StatusOr<v1::Workers> ResolveWorkers(const v1::Workers& workers, absl::string_view field) {
  const auto path = [field](absl::string_view name) { return absl::StrCat(field, ".", name); };
  v1::Workers resolved = workers;
  absl::Status status = ValidateCount(workers.count(), 1, kMaxWorkers, path("count"));
  if (!status.ok()) return status;
  if (workers.quorum() == 0) resolved.set_quorum(workers.count());
  status = ValidateCount(resolved.quorum(), 1, workers.count(), path("quorum"));
  if (!status.ok()) return status;
  if (workers.window() == 0) resolved.set_window(std::min(kDefaultWindow, workers.count()));
  status = ValidateCount(resolved.window(), 1, workers.count(), path("window"));
  if (!status.ok()) return status;
  if (workers.round_timeout_seconds() == 0) resolved.set_round_timeout_seconds(kDefaultTimeoutSeconds);
  if (const double seconds = resolved.round_timeout_seconds(); !(seconds > 0 && seconds <= kMaxTimeoutSeconds)) {
    return InvalidField(path("round_timeout_seconds"), absl::StrCat("(0, ", kMaxTimeoutSeconds, "]"),
                        absl::StrCat(seconds));
  }
  if (workers.has_max_contribution_norm()) {
    status = ValidateRange(workers.max_contribution_norm(), kMinNorm, kMaxNorm, path("max_contribution_norm"));
    if (!status.ok()) return status;
  }
  if (workers.has_trimmed_mean()) {
    // So that something is left of every round.
    const int most = (resolved.quorum() - 1) / 2;
    if (most < 1) {
      return InvalidField(path("trimmed_mean"), "a quorum of at least 3", absl::StrCat(resolved.quorum()));
    }
    status = ValidateCount(workers.trimmed_mean().trim(), 1, most, path("trimmed_mean.trim"));
    if (!status.ok()) return status;
  }
  return resolved;
}

}  // namespace adamant::core
