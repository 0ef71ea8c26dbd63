// The Adam kernel without a service around it.
#ifndef ADAMANT_TESTS_BENCH_KERNEL_ALONE_H_
#define ADAMANT_TESTS_BENCH_KERNEL_ALONE_H_

#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#include "tests/bench/float_array.h"

namespace adamant::bench {

// Steps `params` parameters in memory of its own, on `threads` threads that are started once, each with a contiguous
// share: what the server's commit costs at least. Thread-compatible.
class KernelAlone {
 public:
  KernelAlone(int64_t params, int threads);
  ~KernelAlone();

  // Returns when all are stepped.
  void Round();

 private:
  void Step(int share);

  const int threads_;
  FloatArray parameters_;
  FloatArray gradient_;
  FloatArray exp_avg_;
  FloatArray exp_avg_sq_;
  bool stopping_ = false;  // written between the barriers only
  std::barrier<> begin_;
  std::barrier<> end_;
  std::vector<std::thread> others_;  // the caller takes a share as well
};

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_KERNEL_ALONE_H_
