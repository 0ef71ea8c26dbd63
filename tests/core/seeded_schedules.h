// Schedules by number: the same ones everywhere.
#ifndef ADAMANT_TESTS_CORE_SEEDED_SCHEDULES_H_
#define ADAMANT_TESTS_CORE_SEEDED_SCHEDULES_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>

#include "gtest/gtest.h"
#include "tests/core/set_schedule.h"

namespace adamant::core {

class SeededChoices final : public Choices {
 public:
  SeededChoices(uint64_t seed, int length) : random_(seed), left_(length) {}

  // Biased by less than n / 2^32, and the same everywhere, as std::uniform_int_distribution is not.
  uint32_t Choose(uint32_t n) override { return static_cast<uint32_t>((random_() >> 32) * n >> 32); }
  bool more() override { return left_-- > 0; }

 private:
  std::mt19937_64 random_;
  int left_;
};

// Calls `run` with the numbers of schedules [0, count), ADAMANT_TEST_SCHEDULES=M of them if there are more; the one
// that ADAMANT_TEST_SEED=N names; or with both [N, N + M), so that many can be run in slices. It returns what is wrong.
template <typename RunOne>
void ForEachSchedule(uint64_t count, RunOne run) {
  uint64_t first = 0;
  const char* const schedules = std::getenv("ADAMANT_TEST_SCHEDULES");
  if (schedules != nullptr) count = std::min<uint64_t>(count, std::strtoull(schedules, nullptr, 10));
  if (const char* seed = std::getenv("ADAMANT_TEST_SEED"); seed != nullptr) {
    first = std::strtoull(seed, nullptr, 10);
    count = schedules != nullptr ? std::strtoull(schedules, nullptr, 10) : 1;
  }
  for (uint64_t seed = first; seed < first + count; ++seed) {
    ASSERT_EQ(run(seed), "") << "reproduce with ADAMANT_TEST_SEED=" << seed;
  }
}

inline void RunSchedules(SetSize size, Device device, uint64_t count, int length) {
  ForEachSchedule(count, [&](uint64_t seed) {
    SeededChoices choices(seed, length);
    return RunSchedule(size, device, &choices);
  });
}

}  // namespace adamant::core

#endif  // ADAMANT_TESTS_CORE_SEEDED_SCHEDULES_H_
