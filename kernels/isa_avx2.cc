// The kernels in AVX2 with FMA and F16C.
#include <cpuid.h>

#include "kernels/instruction_sets.h"
#include "kernels/lanes/avx2.h"
#include "kernels/loops.h"

namespace adamant::kernels {
namespace {

// It asks the operating system too: the registers must be saved on a context switch. It runs on every machine, and so
// is compiled without this file's instructions.
[[gnu::target("no-avx")]] bool Supported() {
  // clang 14 knows no F16C there; its registers are AVX2's.
  unsigned int eax, ebx, ecx, edx;
  __cpuid(1, eax, ebx, ecx, edx);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (ecx & bit_F16C) != 0;
}

}  // namespace

constexpr KernelTable kAvx2Kernels = TableIn<Avx2Lanes>("avx2", &Supported);

}  // namespace adamant::kernels
