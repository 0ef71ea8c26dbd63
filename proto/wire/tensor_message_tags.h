// The tags of the bulk messages' fields.
#ifndef ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_
#define ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_

#include <google/protobuf/wire_format_lite.h>

#include <cstdint>

#include "adamant/v1/step.pb.h"

namespace adamant::wire {

using google::protobuf::internal::WireFormatLite;

inline constexpr uint32_t Tag(int number, WireFormatLite::WireType type) {
  return WireFormatLite::MakeTag(number, type);
}

// The outline that all messages of this file share.
inline constexpr uint32_t kHeaderTag =
    Tag(v1::StepRequest::kHeaderFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
inline constexpr uint32_t kLastTag = Tag(v1::StepRequest::kLastFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kChunksTag =
    Tag(v1::StepRequest::kChunksFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

inline constexpr uint32_t kTensorTag = Tag(v1::TensorChunk::kTensorFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kOffsetTag = Tag(v1::TensorChunk::kOffsetFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kSlotTag = Tag(v1::TensorChunk::kSlotFieldNumber, WireFormatLite::WIRETYPE_VARINT);
// `values` is packed, but every parser must take it unpacked as well.
inline constexpr uint32_t kPackedValuesTag =
    Tag(v1::TensorChunk::kValuesFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
inline constexpr uint32_t kOneValueTag = Tag(v1::TensorChunk::kValuesFieldNumber, WireFormatLite::WIRETYPE_FIXED32);
inline constexpr uint32_t kDataTag = Tag(v1::TensorChunk::kDataFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_
