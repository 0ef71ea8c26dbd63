// Floats as a benchmark wants them: on huge pages where the kernel gives them, and touched before anything is timed.
#ifndef ADAMANT_TESTS_BENCH_FLOAT_ARRAY_H_
#define ADAMANT_TESTS_BENCH_FLOAT_ARRAY_H_

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "absl/types/span.h"

namespace adamant::bench {

class FloatArray {
 public:
  // `size` elements of that value. Ends the program if there is no memory for them.
  FloatArray(int64_t size, float value) : size_(size), data_(Allocate(size)) { std::fill_n(data_.get(), size, value); }

  // The same, of arbitrary content, of which only what is used is ever touched.
  explicit FloatArray(int64_t size) : size_(size), data_(Allocate(size)) {}

  float* data() { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<float> span() { return absl::MakeSpan(data_.get(), size_); }
  char* bytes() { return reinterpret_cast<char*>(data_.get()); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };

  static float* Allocate(int64_t size) {
    constexpr int64_t kHugePage = int64_t{2} << 20;
    const int64_t bytes = size * static_cast<int64_t>(sizeof(float));
    const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* data = std::aligned_alloc(kHugePage, rounded);
    if (data == nullptr) std::abort();
    madvise(data, rounded, MADV_HUGEPAGE);
    return static_cast<float*>(data);
  }

  int64_t size_;
  std::unique_ptr<float, Free> data_;
};

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_FLOAT_ARRAY_H_
