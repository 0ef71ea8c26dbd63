// The kernels of CUDA devices.
#include <cstdint>

#include "kernels/cuda_update.h"
#include "kernels/lanes/cuda.h"
#include "kernels/updates/adam.h"

namespace adamant::kernels {
namespace {

constexpr int kThreads = 256;

// The scalars of one launch are its parameters, which may take 4 KiB: those of so many groups.
constexpr int kLaunchGroups = 64;
struct LaunchScalars {
  AdamScalars of[kLaunchGroups];
};

// Updates the vector that begins at element `i` of the arrays.
template <typename U>
__device__ void UpdateVector(const U& update, const UpdateSpan& arrays, int64_t i) {
  using V = typename U::Lanes;
  typename V::Floats slots[U::kSlots];
#pragma unroll
  for (int k = 0; k < U::kSlots; ++k) slots[k] = V::Load(arrays.slots[k].in + i);
  const typename V::Floats p = update.Next(V::Load(arrays.g + i), V::Load(arrays.p_in + i), slots);
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
__device__ bool AlignedAlike(const UpdateSpan& arrays) {
  const int64_t expected = Misalignment(arrays.p_in);
  bool alike = Misalignment(arrays.g) == expected && Misalignment(arrays.p_out) == expected;
#pragma unroll
  for (int k = 0; k < slots; ++k) {
    alike = alike && Misalignment(arrays.slots[k].in) == expected && Misalignment(arrays.slots[k].out) == expected;
  }
  return alike;
}

// A block of threads updates one piece, if its group is one of those from `first_group` on that `scalars` has.
template <template <typename> typename U>
__global__ void __launch_bounds__(kThreads) UpdatePieces(const __grid_constant__ LaunchScalars scalars,
                                                         const __grid_constant__ CudaSpan span, int first_group) {
  const CudaPiece piece = span.pieces[blockIdx.x];
  const int group = piece.group - first_group;
  if (group < 0 || group >= kLaunchGroups) return;
  using Single = U<CudaLanes<1>>;
  using Quad = U<CudaLanes<4>>;
  const Single single(scalars.of[group]);
  const Quad quad(scalars.of[group]);

  const int64_t begin = piece.begin - span.origin;
  const int64_t end = begin + piece.size;
  int64_t vectors_begin = end;
  int64_t vectors_end = end;
  if (AlignedAlike<Single::kSlots>(span.arrays)) {
    vectors_begin = min(end, begin + Misalignment(span.arrays.p_in + begin));
    vectors_end = end - (end - vectors_begin) % 4;
  }
  for (int64_t i = begin + threadIdx.x; i < vectors_begin; i += kThreads) UpdateVector(single, span.arrays, i);
  for (int64_t i = vectors_begin + 4 * threadIdx.x; i < vectors_end; i += 4 * kThreads) {
    UpdateVector(quad, span.arrays, i);
  }
  for (int64_t i = vectors_end + threadIdx.x; i < end; i += kThreads) UpdateVector(single, span.arrays, i);
}

template <template <typename> typename U>
cudaError_t Enqueue(const AdamScalars* scalars, int groups, CudaSpan span, cudaStream_t stream) {
  for (int first_group = 0; first_group < groups; first_group += kLaunchGroups) {
    LaunchScalars of_launch = {};
    for (int group = first_group; group < groups && group < first_group + kLaunchGroups; ++group) {
      of_launch.of[group - first_group] = scalars[group];
    }
    void* arguments[] = {&of_launch, &span, &first_group};
    // Not <<<>>>: its error would be that of any earlier call of this thread.
    const cudaError_t error =
        cudaLaunchKernel(&UpdatePieces<U>, dim3(static_cast<unsigned int>(span.piece_count)), dim3(kThreads), arguments,
                         /*sharedMem=*/0, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t EnqueueUpdate(Update update, const AdamScalars* scalars, int groups, const CudaSpan& span,
                          cudaStream_t stream) {
  if (span.piece_count == 0) return cudaSuccess;
  switch (update) {
    case kAdam:
      return Enqueue<Adam>(scalars, groups, span, stream);
    case kUpdates:
      break;
  }
  return cudaErrorInvalidValue;
}

cudaError_t PrepareUpdates() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, &UpdatePieces<Adam>);
}

}  // namespace adamant::kernels
