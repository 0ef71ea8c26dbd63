// The kernels in C++ alone: the reference.
#include "kernels/instruction_sets.h"
#include "kernels/lanes/scalar.h"
#include "kernels/loops.h"
#include "kernels/measure.h"
#include "kernels/updates/adam.h"

namespace adamant::kernels {
namespace {

bool Supported() { return true; }

}  // namespace

constexpr KernelTable kScalarKernels = {
    .name = "scalar",
    .supported = &Supported,
    .update = {&Run<Adam<ScalarLanes>>},
    .measure = &Measure<ScalarLanes>,
};

}  // namespace adamant::kernels
