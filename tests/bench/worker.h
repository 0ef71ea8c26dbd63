// The process that measures: one connection to a server, one to a peer of the raw exchange, or either.
#ifndef ADAMANT_TESTS_BENCH_WORKER_H_
#define ADAMANT_TESTS_BENCH_WORKER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/bench/samples.h"

namespace adamant::bench {

struct WorkerPlan {
  // An Adamant server to step at; empty: none.
  std::string server;
  // A peer to exchange with; empty: none. At least one of the two.
  std::string peer;
  int64_t params;
  // What the exchange moves each way. A multiple of four.
  int64_t exchange_bytes;
  // Rounds that are counted. Some more run before them.
  int steps;
};

// Runs the rounds: of each, a step, an exchange and, if there are both, the kernel alone on as many threads as the
// server would take. Without a server the rounds are the exchange's.
absl::StatusOr<PairSamples> RunWorker(const WorkerPlan& plan);

// What a worker tells the program that started it, as one line each, and back.
std::string SamplesLine(const std::vector<double>& samples);
absl::StatusOr<std::vector<double>> ParseSamplesLine(absl::string_view line);

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_WORKER_H_
