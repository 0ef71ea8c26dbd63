// The kernels in C++ alone: the reference.
#include "kernels/instruction_sets.h"
#include "kernels/lanes/scalar.h"
#include "kernels/loops.h"

namespace adamant::kernels {
namespace {

bool Supported() { return true; }

}  // namespace

constexpr KernelTable kScalarKernels = TableIn<ScalarLanes>("scalar", &Supported);

}  // namespace adamant::kernels
