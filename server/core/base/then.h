// What is called when something asynchronous has ended.
#ifndef ADAMANT_SERVER_CORE_BASE_THEN_H_
#define ADAMANT_SERVER_CORE_BASE_THEN_H_

#include "absl/functional/any_invocable.h"

namespace adamant::core {

// Called once with the outcome: before the call that it was given to returns, or later, from any thread and with no
// lock held.
template <typename Outcome>
using Then = absl::AnyInvocable<void(Outcome)>;

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_BASE_THEN_H_
