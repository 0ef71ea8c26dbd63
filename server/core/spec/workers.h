// The workers that make a set's steps together.
#ifndef ADAMANT_SERVER_CORE_SPEC_WORKERS_H_
#define ADAMANT_SERVER_CORE_SPEC_WORKERS_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant::core {

inline constexpr int kMaxWorkers = 64;

// `workers` with every default resolved. Errors: INVALID_ARGUMENT (INVALID_FIELD) naming the field relative to `field`.
absl::StatusOr<v1::Workers> ResolveWorkers(const v1::Workers& workers, absl::string_view field);

// Whether contributions are added up as they come. Otherwise all of them are needed at the same time.
inline bool AreAveraged(const v1::Workers& workers) {
  return workers.aggregation_case() == v1::Workers::AGGREGATION_NOT_SET;
}

// How many contributions arrive at the same time, and how many arrays a round takes: where they are added up, one more
// for their sum. Requires: defaults are resolved.
inline int WindowOf(const v1::Workers& workers) { return AreAveraged(workers) ? workers.window() : workers.count(); }
inline int ArraysOfRound(const v1::Workers& workers) { return WindowOf(workers) + (AreAveraged(workers) ? 1 : 0); }

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_WORKERS_H_
