// The kernels of CUDA devices.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda_update.h"
#include "kernels/lanes/cuda.h"
#include "kernels/update.h"
#include "kernels/updates/list.h"

namespace adamant::kernels {
namespace {

constexpr int kThreads = 256;

// The parameters of a launch: the scalars of recipes [first, first + kLaunchRecipes), and those pieces are updated
// whose recipe has its bit of `included`.
constexpr int kLaunchRecipes = 60;
struct Launch {
  UpdateScalars scalars[kLaunchRecipes];
  uint64_t included;
  CudaSpan span;
  int first;
};
static_assert(kLaunchRecipes <= 64 && sizeof(Launch) <= 4096, "what CUDA takes on all devices");

// Updates the vector that begins at element `i` of the arrays, and of `g`, which is in place of theirs.
template <typename U>
__device__ void UpdateVector(const U& update, const UpdateSpan& arrays, const float* g, int64_t i) {
  using V = typename U::Lanes;
  typename V::Floats slots[kMaxSlots];  // the first kSlots of them
#pragma unroll
  for (int k = 0; k < U::kSlots; ++k) slots[k] = V::Load(arrays.slots[k].in + i);
  const typename V::Floats p =
      update.template Next</*clips=*/true>(V::Load(g + i), V::Load(arrays.p_in + i), slots);
  V::Store(arrays.p_out + i, p);
#pragma unroll
  for (int k = 0; k < U::kSlots; ++k) V::Store(arrays.slots[k].out + i, slots[k]);
}

// How many elements from `x` on are before a vector of four, in [0, 4).
__device__ int64_t Misalignment(const float* x) {
  return static_cast<int64_t>(-(reinterpret_cast<uintptr_t>(x) / sizeof(float)) % 4);
}

// Whether all arrays meet the boundaries of vectors at the same elements.
template <int slots>
__device__ bool AlignedAlike(const UpdateSpan& arrays, const float* g) {
  const int64_t expected = Misalignment(arrays.p_in);
  bool alike = Misalignment(g) == expected && Misalignment(arrays.p_out) == expected;
#pragma unroll
  for (int k = 0; k < slots; ++k) {
    alike = alike && Misalignment(arrays.slots[k].in) == expected && Misalignment(arrays.slots[k].out) == expected;
  }
  return alike;
}

// A block of threads updates one piece, in lanes of one float and, where its arrays allow it, of four.
template <typename Single, typename Quad>
__global__ void __launch_bounds__(kThreads) UpdatePieces(const __grid_constant__ Launch launch) {
  const UpdateSpan& arrays = launch.span.arrays;
  const float* const g = arrays.g + (launch.span.shifts != nullptr ? launch.span.shifts[blockIdx.x] : 0);
  const CudaPiece piece = launch.span.pieces[blockIdx.x];
  const int recipe = piece.recipe - launch.first;
  if (recipe < 0 || recipe >= kLaunchRecipes || (launch.included >> recipe & 1) == 0) return;
  const Single single(launch.scalars[recipe]);
  const Quad quad(launch.scalars[recipe]);

  const int64_t begin = piece.begin - launch.span.origin;
  const int64_t end = begin + piece.size;
  int64_t vectors_begin = end;
  int64_t vectors_end = end;
  if (AlignedAlike<Single::kSlots>(arrays, g)) {
    vectors_begin = min(end, begin + Misalignment(arrays.p_in + begin));
    vectors_end = end - (end - vectors_begin) % 4;
  }
  for (int64_t i = begin + threadIdx.x; i < vectors_begin; i += kThreads) UpdateVector(single, arrays, g, i);
  for (int64_t i = vectors_begin + 4 * threadIdx.x; i < vectors_end; i += 4 * kThreads) UpdateVector(quad, arrays, g, i);
  for (int64_t i = vectors_end + threadIdx.x; i < end; i += kThreads) UpdateVector(single, arrays, g, i);
}

// A block of threads copies one piece.
__global__ void __launch_bounds__(kThreads) CopyPieces(const __grid_constant__ CudaSpan span, float* to) {
  const CudaPiece piece = span.pieces[blockIdx.x];
  const int64_t begin = piece.begin - span.origin;
  const int64_t shift = span.shifts[blockIdx.x];
  for (int64_t i = begin + threadIdx.x; i < begin + piece.size; i += kThreads) to[i + shift] = span.arrays.p_out[i];
}

using Kernel = void (*)(Launch);

// A name that stands for one kernel: CUDA 13's compiler takes no pack of kernels' addresses.
template <typename Single, typename Quad>
constexpr Kernel kKernel = &UpdatePieces<Single, Quad>;

struct Kernels {
  Kernel of[kUpdates];
};

template <typename... Single, typename... Quad>
constexpr Kernels KernelsOf(UpdateList<Single...> singles, UpdateList<Quad...>) {
  static_assert(decltype(singles)::HasSlotCounts());
  return {{kKernel<Single, Quad>...}};
}

constexpr Kernels kKernels = KernelsOf(EveryUpdate<CudaLanes<1>>(), EveryUpdate<CudaLanes<4>>());

}  // namespace

cudaError_t EnqueueUpdates(const Recipe* recipes, int first, int end, const CudaSpan& span,
                           const SlotSpan (*slots)[kMaxSlots], cudaStream_t stream) {
  if (span.piece_count == 0) return cudaSuccess;
  Launch launch = {.span = span};
  for (launch.first = first; launch.first < end; launch.first += kLaunchRecipes) {
    const int count = std::min(end - launch.first, kLaunchRecipes);
    uint64_t included[kUpdates] = {};
    for (int i = 0; i < count; ++i) {
      const Recipe& recipe = recipes[launch.first + i];
      if (recipe.update < 0 || recipe.update >= kUpdates) return cudaErrorInvalidValue;
      launch.scalars[i] = recipe.scalars;
      included[recipe.update] |= uint64_t{1} << i;
    }
    for (int update = 0; update < kUpdates; ++update) {
      if (included[update] == 0) continue;
      launch.included = included[update];
      for (int k = 0; k < kMaxSlots; ++k) launch.span.arrays.slots[k] = slots[update][k];
      void* arguments[] = {&launch};
      // Not <<<>>>: its error would be that of any earlier call of this thread.
      const cudaError_t error = cudaLaunchKernel(kKernels.of[update], dim3(static_cast<unsigned int>(span.piece_count)),
                                                 dim3(kThreads), arguments, /*sharedMem=*/0, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

cudaError_t EnqueueCopies(const CudaSpan& span, float* to, cudaStream_t stream) {
  if (span.piece_count == 0) return cudaSuccess;
  CudaSpan copied = span;
  void* arguments[] = {&copied, &to};
  return cudaLaunchKernel(&CopyPieces, dim3(static_cast<unsigned int>(span.piece_count)), dim3(kThreads), arguments,
                          /*sharedMem=*/0, stream);
}

cudaError_t PrepareUpdates() {
  cudaFuncAttributes copies;
  if (const cudaError_t error = cudaFuncGetAttributes(&copies, &CopyPieces); error != cudaSuccess) return error;
  for (Kernel kernel : kKernels.of) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace adamant::kernels
