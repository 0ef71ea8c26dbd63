// The tags of the bulk messages' fields.
#ifndef ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_
#define ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_

#include <google/protobuf/wire_format_lite.h>

#include <cstdint>

#include "adamant/v1/step.pb.h"

namespace adamant::wire::tag {

using google::protobuf::internal::WireFormatLite;

inline constexpr uint32_t Of(int number, WireFormatLite::WireType type) {
  return WireFormatLite::MakeTag(number, type);
}

// The outline that all of them share.
inline constexpr uint32_t kHeader = Of(v1::StepRequest::kHeaderFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
inline constexpr uint32_t kLast = Of(v1::StepRequest::kLastFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kChunks = Of(v1::StepRequest::kChunksFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

inline constexpr uint32_t kTensor = Of(v1::TensorChunk::kTensorFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kOffset = Of(v1::TensorChunk::kOffsetFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kSlot = Of(v1::TensorChunk::kSlotFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kDtype = Of(v1::TensorChunk::kDtypeFieldNumber, WireFormatLite::WIRETYPE_VARINT);
// `rows` and `values` are packed, but every parser must take them unpacked as well.
inline constexpr uint32_t kPackedRows =
    Of(v1::TensorChunk::kRowsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
inline constexpr uint32_t kOneRow = Of(v1::TensorChunk::kRowsFieldNumber, WireFormatLite::WIRETYPE_VARINT);
inline constexpr uint32_t kPackedValues =
    Of(v1::TensorChunk::kValuesFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
inline constexpr uint32_t kOneValue = Of(v1::TensorChunk::kValuesFieldNumber, WireFormatLite::WIRETYPE_FIXED32);
inline constexpr uint32_t kData = Of(v1::TensorChunk::kDataFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

}  // namespace adamant::wire::tag

#endif  // ADAMANT_PROTO_WIRE_TENSOR_MESSAGE_TAGS_H_
