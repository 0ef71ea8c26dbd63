// The bulk messages of the protocol (see tensor_message.h) as they are sent: fp32 elements are not copied, but referred
// to in the caller's memory; those of 16 bits are written into the message as they are narrowed.
//
// Thread-compatible.
#ifndef ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_BUILDER_H_
#define ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_BUILDER_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "proto/wire/tensor_message.h"

namespace adamant::wire {

// A message to be sent.
class TensorMessageBuilder {
 public:
  // `hold` is released when gRPC has let go of the last slice that refers to the elements added here, which may be
  // after the message counts as written. It keeps alive whatever has to outlive that.
  explicit TensorMessageBuilder(std::shared_ptr<const void> hold);

  // Puts `header` into field 1. At most once.
  void SetHeader(const google::protobuf::MessageLite& header);
  void SetLast();

  // Begins a chunk of `count` elements, at least 1; they follow by AddElements, or AddNarrowed if `dtype` is one of 16
  // bits, in order and all of them. A slot of UNSPECIFIED, a dtype of FLOAT32, an offset or tensor of 0 are left out,
  // as proto3 does. Requires: `dtype` is one that this version knows, and FLOAT32 if `form` is kValues; chunks() <
  // kMaxChunks, which is what the other side decodes.
  void BeginChunk(int32_t tensor, int64_t offset, v1::Slot slot, ChunkForm form, int64_t count,
                  v1::Dtype dtype = v1::DTYPE_FLOAT32);
  // The same for whole rows of a tensor, `count` elements in all, which may be none: the chunk says which rows they
  // are, and has no offset and no slot. Requires: `rows` is not empty.
  void BeginRows(int32_t tensor, absl::Span<const int64_t> rows, ChunkForm form, int64_t count,
                 v1::Dtype dtype = v1::DTYPE_FLOAT32);
  // Refers to [elements, elements + n), unchanged until `hold` is released. Short runs are copied instead, where that
  // is cheaper than a slice; if all are, `hold` is released by Finish.
  void AddElements(const float* elements, int64_t n);
  // Makes room for the next `n` elements, which are 16 bits wide, little-endian: the caller writes all of them to what
  // is returned, which has any alignment, before it calls another function of the builder. They are the message's own:
  // `hold` has no part in them.
  void* AddNarrowed(int64_t n);

  // Size so far, in bytes, and chunks.
  int64_t size() const;
  size_t chunks() const { return chunk_count_; }
  // What such a chunk adds to it.
  static int64_t ChunkBytes(int32_t tensor, int64_t offset, v1::Slot slot, int64_t count, v1::Dtype dtype);

  // What a chunk of rows adds to it at most beside its elements and the rows' own bytes.
  static constexpr int64_t kMostRowsChunkBytes = 32;
  // The bytes of one row's index.
  static int64_t RowBytes(int64_t row);

  // The message. The builder is spent.
  grpc::ByteBuffer Finish();

 private:
  // Makes a slice of `copied_`.
  void FlushCopied();

  std::shared_ptr<const void> hold_;
  // Field 1.
  std::string header_;
  bool last_ = false;
  // Field 15: `chunks_`, then `copied_`; `chunk_bytes_` in all.
  std::vector<grpc::Slice> chunks_;
  std::string copied_;
  int64_t chunk_bytes_ = 0;
  size_t chunk_count_ = 0;
  // Of the last chunk: its elements that are still to come, and their type.
  int64_t awaited_ = 0;
  v1::Dtype dtype_ = v1::DTYPE_FLOAT32;
};

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_BUILDER_H_
