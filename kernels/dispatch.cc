// The tables, and the floating-point environment in which every one of their entries runs.
#include "kernels/dispatch.h"

#include <cfenv>
#include <cstring>
#include <span>

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
void UpdateInDefaultEnvironment(const AdamScalars& scalars, const UpdateSpan& span) {
  const DefaultEnvironment environment;
  kernels.update[update](scalars, span);
}

template <const KernelTable& kernels>
GradientStats MeasureInDefaultEnvironment(const float* g, int64_t size) {
  const DefaultEnvironment environment;
  return kernels.measure(g, size);
}

// Made at its first use, which may be in another file's static initialization.
template <const KernelTable& kernels>
const KernelTable* InDefaultEnvironment() {
  static const KernelTable table = {
      .name = kernels.name,
      .supported = kernels.supported,
      .update = {&UpdateInDefaultEnvironment<kernels, kAdam>},
      .measure = &MeasureInDefaultEnvironment<kernels>,
  };
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
