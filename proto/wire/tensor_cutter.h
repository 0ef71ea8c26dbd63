// How tensors are divided among chunks and messages.
//
// Thread-compatible.
#ifndef ADAMANT_PROTO_WIRE_TENSOR_CUTTER_H_
#define ADAMANT_PROTO_WIRE_TENSOR_CUTTER_H_

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "proto/wire/tensor_message_builder.h"

namespace adamant::wire {

// Cuts tensors into chunks and messages: all elements of tensor 0, then of tensor 1, and so on.
class TensorCutter {
 public:
  // Supplies elements [begin, end) of a tensor by AddElements or AddNarrowed on `builder`, in as many runs as they lie
  // in, and returns true; or false if they are not to be had.
  using Source = absl::FunctionRef<bool(int32_t tensor, int64_t begin, int64_t end, TensorMessageBuilder* builder)>;

  // Cuts tensors of these sizes in elements, in one slot. Those without elements get no chunk. `form` and `dtype` are
  // those of all chunks, as BeginChunk takes them. `sizes` outlives the cutter.
  TensorCutter(absl::Span<const int64_t> sizes, v1::Slot slot, ChunkForm form, v1::Dtype dtype = v1::DTYPE_FLOAT32);

  // That of all chunks.
  v1::Dtype dtype() const { return dtype_; }
  // Whether all elements have been given out.
  bool done() const;
  // The first element that has not; tensor() is the number of tensors once all have.
  size_t tensor() const { return tensor_; }
  int64_t offset() const { return offset_; }
  // Elements from `offset` of `tensor` on are not to be had yet: Fill stops before them. At first all are.
  void SetAvailable(size_t tensor, int64_t offset);
  // Adds chunks to `builder` until done(), or until no element is available, or until it has kMaxChunks, or until
  // another element would bring its size above `limit`. A builder without a chunk gets at least one element, even if
  // that alone goes above. Stops where `source` has nothing: then `builder` is good for nothing.
  void Fill(int64_t limit, Source source, TensorMessageBuilder* builder);

 private:
  // Goes to the next tensor that has elements, from `tensor_` on.
  void PassOverEmpty();

  absl::Span<const int64_t> sizes_;
  v1::Slot slot_;
  ChunkForm form_;
  v1::Dtype dtype_;
  size_t tensor_ = 0;
  int64_t offset_ = 0;
  // The first element that is not available.
  size_t missing_tensor_;
  int64_t missing_offset_ = 0;
};

// How many of `rows`, from the first one on, with `width` elements each, go into one more chunk of the
// message that `builder` makes without bringing its size above `limit`; none if it has as many as it may have. At least
// one if it has no chunk, even if that alone goes above.
// Requires: `rows` is not empty.
int64_t RowsThatFit(absl::Span<const int64_t> rows, int64_t width, v1::Dtype dtype, const TensorMessageBuilder& builder,
                    int64_t limit);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_TENSOR_CUTTER_H_
