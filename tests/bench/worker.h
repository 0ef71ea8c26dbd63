// The process that measures: connections to a server, to a peer of the raw exchange, and to one of the plain exchange.
#ifndef ADAMANT_TESTS_BENCH_WORKER_H_
#define ADAMANT_TESTS_BENCH_WORKER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "adamant/v1/parameter_set.pb.h"
#include "tests/bench/exchange.h"
#include "tests/bench/samples.h"

namespace adamant::bench {

// Elements of a table's row.
inline constexpr int64_t kRowElements = 64;

struct WorkerPlan {
  // An Adamant server to step at; empty: none.
  std::string server;
  // A peer to exchange with over gRPC, and one over plain sockets; empty: none. At least one of the three.
  std::string peer;
  std::string tcp_peer;
  // Where a second set at the server lives, to step beside the first one, which is on the processor; empty: none.
  std::string device;
  // What elements of gradients and replies travel as in steps of another set, beside those of fp32: one of 16 bits.
  // FLOAT32: there is no such set.
  v1::Dtype dtype = v1::DTYPE_FLOAT32;
  int64_t params;
  // Of how many tensors, all of one size, the set is that is on the processor and steps in fp32.
  int64_t tensors = 1;
  // Rows of a table at the server of which a step brings as many, at random, as make `params`, beside the step of a
  // tensor that is no larger. 0: there is no such set.
  int64_t table_rows = 0;
  // What is kept of another set, of one tensor, beside the first one, of which nothing is; without a level there is no
  // such set.
  v1::Durability durability = {};
  // What an exchange moves each way. A multiple of four.
  int64_t exchange_bytes;
  // Of the exchange over gRPC.
  ExchangeSettings settings;
  // Rounds that are counted. Some more run before them.
  int steps;
};

// Runs the rounds: of each, a step, one of the set on the device, one of 16 bits, one of rows, one that is kept, an
// exchange over gRPC, one over plain sockets and, where there are a step and an exchange, the kernel alone on as many
// threads as the server would take.
absl::StatusOr<PairSamples> RunWorker(const WorkerPlan& plan);

// What a worker tells the program that started it, as one line each, and back.
std::string SamplesLine(const std::vector<double>& samples);
absl::StatusOr<std::vector<double>> ParseSamplesLine(absl::string_view line);

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_WORKER_H_
