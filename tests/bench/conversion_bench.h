// The conversions to and from 16 bits and the fold of rounds, beside memcpy: a part of kernel_bench.
#ifndef ADAMANT_TESTS_BENCH_CONVERSION_BENCH_H_
#define ADAMANT_TESTS_BENCH_CONVERSION_BENCH_H_

#include <cstdint>

namespace adamant::kernels {

// Registers them with Google Benchmark, at these sizes in elements. Their rates count what is read and written.
void RegisterConversions(int64_t in_cache, int64_t in_memory);

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_BENCH_CONVERSION_BENCH_H_
