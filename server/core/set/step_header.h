// What a step's header asks for, and whether a set can do that.
#ifndef ADAMANT_SERVER_CORE_SET_STEP_HEADER_H_
#define ADAMANT_SERVER_CORE_SET_STEP_HEADER_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adamant/v1/step.pb.h"
#include "server/core/set/set_rep.h"
#include "server/core/spec/tensor_selection.h"

namespace adamant::core {

// Whether the header could be one for some set. Error: INVALID_ARGUMENT naming the field.
absl::Status ValidateStepHeader(const v1::StepHeader& header);

// The tensors that `header` brings to `set` whole, as that is configured now, if its overrides, and the rows that it
// announces of other tensors, are valid there, too. Error: INVALID_ARGUMENT naming the field.
absl::StatusOr<std::shared_ptr<const TensorSelection>> SelectTensors(const SetRep& set, const v1::StepHeader& header)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);

// Whether `header` is of a contribution that the set's workers may make now or might have made, or, in a set without
// workers, of none. Errors: INVALID_ARGUMENT naming the field; ABORTED (ROUND_MISMATCH).
absl::Status CheckWorker(const SetRep& set, const v1::StepHeader& header) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_STEP_HEADER_H_
