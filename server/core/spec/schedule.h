// How a group's learning rate goes on from step to step. Thread-safe: there is no state.
#ifndef ADAMANT_SERVER_CORE_SPEC_SCHEDULE_H_
#define ADAMANT_SERVER_CORE_SPEC_SCHEDULE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"

namespace adamant::core {

// Checks the schedule of a group with this learning rate, which is finite and at least 0. `path` is the schedule's,
// such as `spec.groups[0].schedule`. Error: INVALID_ARGUMENT (INVALID_FIELD) with a field such as
// `spec.groups[0].schedule.cosine.steps`. Values are compared as the doubles that they are: no kernel sees them.
absl::Status ValidateSchedule(const v1::Schedule& schedule, double learning_rate, absl::string_view path);

// The learning rate of the step that is applied when the set's step is `step`, in [0, learning_rate]. Takes the same
// time for every step. Its last bits may differ between C libraries.
// Requires: a schedule that is valid for this learning rate; step >= 0.
double ScheduledLearningRate(const v1::Schedule& schedule, double learning_rate, int64_t step);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SPEC_SCHEDULE_H_
