// The seam between memory and the bulk messages of the protocol, as they are received: StepRequest, StepResponse,
// StepOnceRequest, StepOnceResponse, WriteTensorsRequest, WriteTensorsOnceRequest and ReadTensorsResponse. They all
// have the same outline, which this file is built on:
//
//   <a header message> = 1;   bool last = 2;   repeated TensorChunk chunks = 15;
//
// Elements are copied, or widened, once: from the slices of a grpc::ByteBuffer to the caller's floats. Decoding walks
// the wire format over the slices (gRPC 1.51 delivers them in pieces of at most 64 KiB, anywhere cut). Everything else
// is left to the protobuf library. Requires a little-endian host. For what is sent see tensor_message_builder.h.
//
// Thread-compatible. No input can make these functions crash or read out of bounds.
#ifndef ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_H_
#define ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "adamant/v1/parameter_set.pb.h"
#include "adamant/v1/step.pb.h"

namespace adamant::wire {

// Messages are this large by choice, in bytes: 1 MiB of elements, with room for what goes with them, so that a tensor
// of some MiB does not need another message for its last bytes. 1 or 2 MiB are alike, and 4 MiB is what every client
// takes by default.
inline constexpr int64_t kMessageBytes = (int64_t{1} << 20) + (int64_t{1} << 10);
// A chunk of so many fp32 elements fits into such a message, as does one of twice as many of 16 bits.
inline constexpr int64_t kChunkElements = int64_t{1} << 18;
// The largest message that anybody sends or takes.
inline constexpr int64_t kMaxMessageBytes = int64_t{4} << 20;
// Chunks of one message that are decoded. 4 MiB of chunks of one element each would take ten times that in memory.
inline constexpr size_t kMaxChunks = 32768;

// How often field 1 may come in one message, and its bytes in all. Protobuf merges them, and two million empty ones
// take 30 times their bytes; a step may name 65,536 tensors, and a write may bring a count for each.
inline constexpr size_t kMaxHeaders = 16;
inline constexpr int64_t kMaxHeaderBytes = int64_t{512} << 10;

// What one element takes, in bytes: of UNSPECIFIED as of FLOAT32, and 0 of what is no Dtype that this version knows.
constexpr int64_t ElementBytes(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_UNSPECIFIED:
    case v1::DTYPE_FLOAT32:
      return 4;
    case v1::DTYPE_BFLOAT16:
    case v1::DTYPE_FLOAT16:
      return 2;
    default:
      return 0;
  }
}

// How a chunk spells its elements: TensorChunk.data or TensorChunk.values.
enum class ChunkForm { kData, kValues };

// A place in bytes that lie in pieces. Refers to them; a copy is another place in the same bytes.
class SliceCursor {
 public:
  SliceCursor() = default;
  // The bytes of an array of slices.
  explicit SliceCursor(const grpc::Slice* slices) : next_(slices) {}
  // The bytes [begin, end).
  SliceCursor(const uint8_t* begin, const uint8_t* end) : position_(begin), end_(end) {}

  // Moves on by `n` bytes, copying them to `to`, or past them. Requires: there are so many.
  void Read(void* to, size_t n);
  // Moves on by one varint of at most 10 bytes, and returns it. Requires: there is one.
  uint64_t ReadVarint();
  void Skip(size_t n);
  // Moves on by `n` elements of `element_bytes` each, at most 4, and shows them to `visit` as Chunk::Visit does.
  // Requires: there are so many.
  void Visit(int64_t n, int64_t element_bytes, absl::FunctionRef<void(const uint8_t* bytes, int64_t count)> visit);

 private:
  // Goes to the next slice at the end of this one. Returns the bytes at hand, at most `n`.
  size_t Piece(size_t n);

  // [position_, end_), then the slices from `next_` on.
  const uint8_t* position_ = nullptr;
  const uint8_t* end_ = nullptr;
  const grpc::Slice* next_ = nullptr;
};

// A received message. Keeps the slices that it came in.
class TensorMessage {
 public:
  // One chunk; refers to its message.
  class Chunk {
   public:
    int32_t tensor() const { return tensor_; }
    int64_t offset() const { return offset_; }
    v1::Slot slot() const { return slot_; }
    ChunkForm form() const { return form_; }
    // The type of the elements: FLOAT32, BFLOAT16 or FLOAT16. FLOAT32 where the chunk does not say.
    v1::Dtype dtype() const { return dtype_; }
    // Elements; may be none, and then the form says nothing.
    int64_t count() const { return count_; }
    // Rows that the elements are; none in a chunk of consecutive elements.
    int64_t row_count() const { return row_count_; }

    // Reads the next `n` rows into [to, to + n). Requires: no more than row_count() in all.
    void ReadRows(int64_t* to, int64_t n) {
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(rows_.ReadVarint());
    }

    // Copies the next `n` elements to [to, to + n). Requires: dtype() is FLOAT32, no more than count() elements in all.
    void Read(float* to, int64_t n) { elements_.Read(to, n * sizeof(float)); }
    // Shows the next `n` elements to `visit`, in order and in runs: `count` elements, little-endian, lie at `bytes`,
    // with any alignment, until `visit` returns. An element that slices share is a run of its own. Requires: no more
    // than count() elements in all.
    void Visit(int64_t n, absl::FunctionRef<void(const uint8_t* bytes, int64_t count)> visit) {
      elements_.Visit(n, ElementBytes(dtype_), visit);
    }

   private:
    friend class TensorMessage;
    int32_t tensor_ = 0;
    v1::Dtype dtype_ = v1::DTYPE_UNSPECIFIED;
    int64_t offset_ = 0;
    v1::Slot slot_ = v1::SLOT_UNSPECIFIED;
    ChunkForm form_ = ChunkForm::kData;
    int64_t count_ = 0;
    int64_t row_count_ = 0;
    // The elements, and the rows, not read yet: in the message's slices, or in its `gathered_`.
    SliceCursor elements_;
    SliceCursor rows_;
  };

  // Decodes `buffer`, which ought to be a message of the given type (the full name is for errors alone: all types have
  // one outline). Errors, all INVALID_ARGUMENT: MALFORMED_MESSAGE, also for more than kMaxChunks chunks;
  // MALFORMED_CHUNK for a chunk with both `data` and `values`, or with bytes that are not whole elements; INVALID_FIELD
  // for one whose `dtype` is none that this version knows, or not FLOAT32 with `values`; UNKNOWN_FIELD for a field,
  // here or in a chunk, that this version does not know by its number or not in its wire type. What is wrong with a
  // chunk is at the field `chunks[INDEX]` or within it; MALFORMED_CHUNK and INVALID_FIELD name its tensor and offset,
  // too. A chunk without elements is decoded: only who knows the tensor knows whether it has any.
  static absl::StatusOr<TensorMessage> Decode(const grpc::ByteBuffer& buffer,
                                              absl::string_view type = "message of tensors");
  // The same. After an error `message` has what came before the fault, such as a header, and nothing of it is to be
  // taken for whole.
  static absl::Status Decode(const grpc::ByteBuffer& buffer, absl::string_view type, TensorMessage* message);

  // An empty message.
  TensorMessage() = default;
  TensorMessage(TensorMessage&&) = default;
  TensorMessage& operator=(TensorMessage&&) = default;

  bool has_header() const { return !headers_.empty(); }
  // Parses the header. Errors, INVALID_ARGUMENT: MALFORMED_MESSAGE, and then `header` is empty; UNKNOWN_FIELD, also in
  // messages within, and then `header` holds what is known, or nothing if its bytes are more than 64 KiB; INVALID_FIELD
  // for more than kMaxRepeated elements of a repeated message field in such a one, and then it is empty. All name the
  // field as `header`, or within it. Requires: has_header().
  absl::Status ParseHeader(google::protobuf::Message* header) const;
  bool last() const { return last_; }
  // In the order of the message.
  absl::Span<Chunk> chunks() { return absl::MakeSpan(chunks_); }

 private:
  class FieldReader;
  class Pieces;

  absl::Status DecodeChunk(FieldReader reader, absl::string_view type);
  // Whether these bytes of `data` and `values` are elements of the next chunk. `whole_values`: so is each piece of
  // `values`.
  absl::Status CheckElements(const Chunk& chunk, int64_t data_bytes, int64_t values_bytes, bool whole_values) const;

  // Chunks refer to the slices and to the bytes of `gathered_`, which stay where they are when the message is moved.
  std::vector<grpc::Slice> slices_;
  // The elements, or rows, of each chunk whose `values`, or `rows`, came in several pieces.
  std::vector<std::vector<uint8_t>> gathered_;
  // Field 1, as often as it came: protobuf merges them.
  std::vector<std::string> headers_;
  bool last_ = false;
  std::vector<Chunk> chunks_;
};

// INVALID_ARGUMENT (MALFORMED_MESSAGE): not a protocol buffer of this type (its full name). `field` is where.
absl::Status MalformedMessage(absl::string_view type, absl::string_view field = "");
// INVALID_ARGUMENT (UNKNOWN_FIELD): there is something at `path` that this version does not know.
absl::Status UnknownField(absl::string_view path);

// The number of the first field, in `message` or in any message within it, that this version does not know; with the
// path to the message that has it, such as `spec.tensors[2].9`. Empty if there is none.
std::string FindUnknownField(const google::protobuf::Message& message);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_H_
