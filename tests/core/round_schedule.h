// Random schedules of what workers do to the rounds of one set, against a model of them.
#ifndef ADAMANT_TESTS_CORE_ROUND_SCHEDULE_H_
#define ADAMANT_TESTS_CORE_ROUND_SCHEDULE_H_

#include <string>

#include "tests/core/set_schedule.h"

namespace adamant::core {

// Runs one schedule. One to five workers contribute, rightly and wrongly, send again what they have sent, and die at
// any point; time runs out; the set is written, and its configuration changed, under an open round. After each action
// the set's answers, who may arrive, and what is charged are the model's; at the end its state is, too. Returns the
// first difference, or nothing.
std::string RunRoundSchedule(SetSize size, Choices* choices);

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_ROUND_SCHEDULE_H_
