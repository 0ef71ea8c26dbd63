// What the conformance suites share: the tables under test, memory that reveals an access outside of an array, bits to
// compare, and floating-point environments to call from.
#ifndef ADAMANT_TESTS_CONFORMANCE_KERNEL_CONFORMANCE_H_
#define ADAMANT_TESTS_CONFORMANCE_KERNEL_CONFORMANCE_H_

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/dispatch.h"
#include "tests/conformance/supported_kernels.h"

namespace adamant::kernels {

inline std::string KernelName(const testing::TestParamInfo<const KernelTable*>& info) { return info.param->name; }

inline const KernelTable& ScalarKernels() { return **AllKernels().begin(); }

// Bit for bit, but that any NaN equals any NaN.
inline testing::AssertionResult SameFloats(const std::vector<float>& expected, const std::vector<float>& actual) {
  if (expected.size() != actual.size()) return testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool same = std::bit_cast<uint32_t>(expected[i]) == std::bit_cast<uint32_t>(actual[i]) ||
                      (std::isnan(expected[i]) && std::isnan(actual[i]));
    if (!same) {
      return testing::AssertionFailure() << std::hexfloat << "element " << i << " is " << actual[i] << " instead of "
                                         << expected[i];
    }
  }
  return testing::AssertionSuccess();
}

// An array `offset` elements behind the start of a cache line, between bytes that must stay as they are.
template <typename T>
class CanariedMemory {
 public:
  CanariedMemory(const std::vector<T>& values, int64_t offset)
      : size_(static_cast<int64_t>(values.size())), memory_(2 * kMargin + kLine + size_) {
    std::memset(memory_.data(), kCanary, memory_.size() * sizeof(T));
    const int64_t misalignment = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(T)) % kLine;
    begin_ = kMargin + (2 * kLine - misalignment + offset) % kLine;
    std::copy(values.begin(), values.end(), memory_.begin() + begin_);
  }

  T* data() { return memory_.data() + begin_; }
  std::vector<T> values() const { return {memory_.begin() + begin_, memory_.begin() + begin_ + size_}; }

  testing::AssertionResult NothingOutsideWasWritten() const {
    T canary;
    std::memset(&canary, kCanary, sizeof canary);
    for (int64_t i = 0; i < static_cast<int64_t>(memory_.size()); ++i) {
      const bool outside = i < begin_ || i >= begin_ + size_;
      if (outside && std::memcmp(&memory_[i], &canary, sizeof canary) != 0) {
        return testing::AssertionFailure() << "element " << i - begin_ << " of an array of " << size_ << " was written";
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  static constexpr int64_t kMargin = 64;
  static constexpr int64_t kLine = 64 / sizeof(T);
  static constexpr int kCanary = 0xA5;

  const int64_t size_;
  std::vector<T> memory_;
  int64_t begin_;
};
using CanariedArray = CanariedMemory<float>;

// An array that ends where the memory ends, or begins where it begins: an access beyond is a segmentation fault.
template <typename T>
class FencedMemory {
 public:
  enum class At { kBegin, kEnd };

  FencedMemory(const std::vector<T>& values, At at) : size_(values.size()) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t readable = (size_ * sizeof(T) + page) / page * page;
    length_ = readable + 2 * page;
    memory_ = static_cast<char*>(mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(mprotect(memory_ + page, readable, PROT_READ | PROT_WRITE), 0);
    const size_t begin = at == At::kBegin ? page : page + readable - size_ * sizeof(T);
    data_ = reinterpret_cast<T*>(memory_ + begin);
    std::copy(values.begin(), values.end(), data_);
  }
  FencedMemory(const FencedMemory&) = delete;
  FencedMemory& operator=(const FencedMemory&) = delete;
  ~FencedMemory() { munmap(memory_, length_); }

  T* data() { return data_; }
  std::vector<T> values() const { return {data_, data_ + size_}; }

 private:
  const size_t size_;
  size_t length_;
  char* memory_;
  T* data_;
};
using FencedArray = FencedMemory<float>;

#if defined(__x86_64__)
// Every rounding mode, with and without flush-to-zero and denormals-are-zero, with and without sticky flags, with
// exceptions masked and not.
inline std::vector<unsigned int> FloatingPointEnvironments() {
  std::vector<unsigned int> environments;
  for (unsigned int rounding : {0x0000u, 0x2000u, 0x4000u, 0x6000u}) {
    for (unsigned int denormals : {0x0000u, 0x8000u, 0x0040u, 0x8040u}) {
      for (unsigned int flags : {0x00u, 0x15u, 0x3Fu}) {
        for (unsigned int masks : {0x1F80u, 0x0000u}) environments.push_back(rounding | denormals | flags | masks);
      }
    }
  }
  return environments;
}

// Calls `function` with that MXCSR, and returns what it is afterwards.
template <typename Function>
unsigned int CallIn(unsigned int environment, Function&& function) {
  const unsigned int saved = _mm_getcsr();
  _mm_setcsr(environment);
  function();
  const unsigned int after = _mm_getcsr();
  _mm_setcsr(saved);
  return after;
}
#endif

}  // namespace adamant::kernels

#endif  // ADAMANT_TESTS_CONFORMANCE_KERNEL_CONFORMANCE_H_
