// The updates on a CUDA device, with the bits of every other instruction set.
#ifndef ADAMANT_KERNELS_CUDA_UPDATE_H_
#define ADAMANT_KERNELS_CUDA_UPDATE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/update.h"

namespace adamant::kernels {

// Elements of a set's flat space that are updated alike, for one block of threads.
struct CudaPiece {
  int64_t begin;
  int32_t size;    // at most kCudaPieceElements
  int32_t recipe;  // index of theirs
};

// With so many each of a block's threads has one vector of four. On an H100 64 Mi parameters take 0.640 ms so, and
// 0.662 with 4096.
inline constexpr int32_t kCudaPieceElements = 1024;

// What is to be updated: as UpdateSpan says, but that the arrays are in the device's memory, that their first elements
// are element `origin` of the flat space, and that `pieces`, also in the device's memory, say which elements are meant.
struct CudaSpan {
  UpdateSpan arrays;  // without `size` and slots
  int64_t origin;
  const CudaPiece* pieces;
  int64_t piece_count;
  // Where not null, in the device's memory: by piece, how much further on its gradient is in `arrays.g` than its other
  // elements are in their arrays.
  const int64_t* shifts = nullptr;
};

// Enqueues one step of `span` on `stream` of the current device; with no pieces it does nothing. `recipes` are by
// index, in the host's memory, and those in [first, end) are copied before this returns: pieces with one of these are
// updated, the others left alone. It launches once for each update among every 60 of them, so callers give no more than
// occur. `slots` are by update, and copied, too. Returns the launches' own error, and none of an earlier call.
// Thread-safe.
cudaError_t EnqueueUpdates(const Recipe* recipes, int first, int end, const CudaSpan& span,
                           const SlotSpan (*slots)[kMaxSlots], cudaStream_t stream);

// Enqueues a copy of each piece's new parameters, in `arrays.p_out`, to where its gradient was, in `to`, which is the
// array `arrays.g`. Otherwise as EnqueueUpdates. Requires: shifts.
cudaError_t EnqueueCopies(const CudaSpan& span, float* to, cudaStream_t stream);

// Loads the kernels into the current device. Returns CUDA's error where they cannot be had, as on a device that this
// build has no code for. Thread-safe.
cudaError_t PrepareUpdates();

}  // namespace adamant::kernels

#endif  // ADAMANT_KERNELS_CUDA_UPDATE_H_
