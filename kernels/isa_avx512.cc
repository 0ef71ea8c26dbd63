// The kernels in AVX-512F.
#include "kernels/instruction_sets.h"
#include "kernels/lanes/avx512.h"
#include "kernels/loops.h"

namespace adamant::kernels {
namespace {

// It asks the operating system too: the registers must be saved on a context switch. It runs on every machine, and so
// is compiled without this file's instructions.
[[gnu::target("no-avx")]] bool Supported() { return __builtin_cpu_supports("avx512f"); }

}  // namespace

constexpr KernelTable kAvx512Kernels = TableIn<Avx512Lanes>("avx512", &Supported);

}  // namespace adamant::kernels
