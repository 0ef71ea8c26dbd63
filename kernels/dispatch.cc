// The tables, and the floating-point environment in which every one of their entries runs.
#include "kernels/dispatch.h"

#include <cfenv>
#include <cstring>
#include <span>
#include <utility>

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

// `kernels` in that environment. The call in between is into another object file, so that no arithmetic moves out of
// it.
template <const KernelTable& kernels, Update update>
void UpdateInDefaultEnvironment(const UpdateScalars& scalars, const UpdateSpan& span) {
  const DefaultEnvironment environment;
  kernels.update[update](scalars, span);
}

template <const KernelTable& kernels>
GradientStats MeasureInDefaultEnvironment(const float* g, int64_t size) {
  const DefaultEnvironment environment;
  return kernels.measure(g, size);
}

template <const KernelTable& kernels, Format16 format>
void WidenInDefaultEnvironment(const void* from, float* to, int64_t n) {
  const DefaultEnvironment environment;
  kernels.widen[format](from, to, n);
}

template <const KernelTable& kernels, Format16 format>
int64_t NarrowInDefaultEnvironment(const float* from, void* to, int64_t n) {
  const DefaultEnvironment environment;
  return kernels.narrow[format](from, to, n);
}

template <const KernelTable& kernels>
void FoldInDefaultEnvironment(float k, const float* g, float* sum, int64_t n, bool first) {
  const DefaultEnvironment environment;
  kernels.fold(k, g, sum, n, first);
}

template <const KernelTable& kernels, int... updates>
KernelTable TableInDefaultEnvironment(std::integer_sequence<int, updates...>) {
  return {
      .name = kernels.name,
      .supported = kernels.supported,
      .update = {&UpdateInDefaultEnvironment<kernels, static_cast<Update>(updates)>...},
      .measure = &MeasureInDefaultEnvironment<kernels>,
      .widen = {&WidenInDefaultEnvironment<kernels, kBfloat16>, &WidenInDefaultEnvironment<kernels, kFloat16>},
      .narrow = {&NarrowInDefaultEnvironment<kernels, kBfloat16>, &NarrowInDefaultEnvironment<kernels, kFloat16>},
      .fold = &FoldInDefaultEnvironment<kernels>,
  };
}

// Made at its first use, which may be in another file's static initialization.
template <const KernelTable& kernels>
const KernelTable* InDefaultEnvironment() {
  static const KernelTable table = TableInDefaultEnvironment<kernels>(std::make_integer_sequence<int, kUpdates>());
  return &table;
}

const KernelTable& FastestSupported() {
  const KernelTable* fastest = AllKernels().front();
  for (const KernelTable* table : AllKernels()) {
    if (table->supported()) fastest = table;
  }
  return *fastest;
}

}  // namespace

std::span<const KernelTable* const> AllKernels() {
  static const KernelTable* const tables[] = {
    InDefaultEnvironment<kScalarKernels>(),
#if defined(__x86_64__)
    InDefaultEnvironment<kAvx2Kernels>(),
    InDefaultEnvironment<kAvx512Kernels>(),
#endif
  };
  return tables;
}

const KernelTable& BestKernels() {
  static const KernelTable& best = FastestSupported();
  return best;
}

const KernelTable* FindKernels(const char* name) {
  for (const KernelTable* table : AllKernels()) {
    if (std::strcmp(table->name, name) == 0) return table->supported() ? table : nullptr;
  }
  return nullptr;
}

}  // namespace adamant::kernels
