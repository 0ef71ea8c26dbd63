// The kernels in AVX2 with FMA.
#include "kernels/instruction_sets.h"
#include "kernels/lanes/avx2.h"
#include "kernels/loops.h"
#include "kernels/measure.h"
#include "kernels/updates/adam.h"

namespace adamant::kernels {
namespace {

// It asks the operating system too: the registers must be saved on a context switch. It runs on every machine, and so
// is compiled without this file's instructions.
[[gnu::target("no-avx")]] bool Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

constexpr KernelTable kAvx2Kernels = {
    .name = "avx2",
    .supported = &Supported,
    .update = {&Run<Adam<Avx2Lanes>>},
    .measure = &Measure<Avx2Lanes>,
};

}  // namespace adamant::kernels
