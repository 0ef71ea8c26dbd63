// The tables, and the floating-point environment in which every one of their entries runs.
#include "kernels/dispatch.h"

#include <cfenv>
#include <cstring>
#include <iterator>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/instruction_sets.h"

namespace adamant::kernels {
namespace {

// While it lives: round to nearest even, denormals kept, every exception masked. Restores what it found, flags too.
class DefaultEnvironment {
 public:
  DefaultEnvironment(const DefaultEnvironment&) = delete;
  DefaultEnvironment& operator=(const DefaultEnvironment&) = delete;

#if defined(__x86_64__)
  // <cfenv> would save and restore the x87 unit too: 195 ns a call instead of 8.
  DefaultEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~DefaultEnvironment() { _mm_setcsr(saved_); }

 private:
  const unsigned int saved_;
#else
  DefaultEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

// The call in between is into another object file, so that no arithmetic moves out of the environment.
template <AdamFunction function>
void Adam(const AdamScalars& scalars, const AdamSpan& span) {
  const DefaultEnvironment environment;
  function(scalars, span);
}

template <MeasureFunction function>
GradientStats Measure(const float* g, int64_t size) {
  const DefaultEnvironment environment;
  return function(g, size);
}

constexpr KernelTable kScalar = {"scalar", [] { return true; }, &Adam<&AdamScalar>, &Measure<&MeasureScalar>};

#if defined(__x86_64__)
// __builtin_cpu_supports asks the operating system too: the registers must be saved on a context switch.
bool Avx2Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool Avx512Supported() { return __builtin_cpu_supports("avx512f"); }

constexpr KernelTable kAvx2 = {"avx2", &Avx2Supported, &Adam<&AdamAvx2>, &Measure<&MeasureAvx2>};
constexpr KernelTable kAvx512 = {"avx512", &Avx512Supported, &Adam<&AdamAvx512>, &Measure<&MeasureAvx512>};

constexpr const KernelTable* kTables[] = {&kScalar, &kAvx2, &kAvx512};
#else
constexpr const KernelTable* kTables[] = {&kScalar};
#endif

const KernelTable& FastestSupported() {
  const KernelTable* fastest = &kScalar;
  for (const KernelTable* table : kTables) {
    if (table->supported()) fastest = table;
  }
  return *fastest;
}

}  // namespace

KernelTables AllKernels() { return {std::begin(kTables), std::end(kTables)}; }

const KernelTable& BestKernels() {
  static const KernelTable& best = FastestSupported();
  return best;
}

const KernelTable* FindKernels(const char* name) {
  for (const KernelTable* table : kTables) {
    if (std::strcmp(table->name, name) == 0) return table->supported() ? table : nullptr;
  }
  return nullptr;
}

}  // namespace adamant::kernels
