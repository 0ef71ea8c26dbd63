// Random schedules of what several clients do to one parameter set, against a sequential model of it.
#ifndef ADAMANT_TESTS_CORE_SET_SCHEDULE_H_
#define ADAMANT_TESTS_CORE_SET_SCHEDULE_H_

#include <cstdint>
#include <string>

namespace adamant::core {

// Where a schedule comes from. Thread-compatible.
class Choices {
 public:
  virtual ~Choices() = default;
  // One of [0, n). Requires: n is at least 1.
  virtual uint32_t Choose(uint32_t n) = 0;
  // Whether the schedule goes on.
  virtual bool more() = 0;
};

enum class SetSize { kSmall, kLarge };
// Where a set lives: on the processor, on a device that answers later, on one that has memory of its own as well, or on
// the first CUDA device, which there must be.
enum class Device { kProcessor, kLate, kApart, kCuda };

// Runs one schedule. Three clients begin steps (new ones, retries, reused ids, wrong expectations; all tensors or some,
// with overrides, rows, scaled gradients, based on older parameters), send chunks (right and wrong), complete, cancel
// and break off; another writes all tensors or some; others read and keep what they read; one watches; the
// configuration is changed, and tensors are added, under what is under way; the set, whose optimizers are any, is
// deleted and created again. After each of these the set's answer is the model's, at the end its state, what it
// remembers, what was told of it and what is charged too. Returns the first difference, or nothing.
std::string RunSchedule(SetSize size, Device device, Choices* choices);

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SET_SCHEDULE_H_
