#include "proto/wire/message_check.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"

namespace adamant::wire {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormat;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Where a message stands: a field of another one, and its index there if that is repeated. Spelled only for an error.
struct Place {
  const Place* parent;
  const FieldDescriptor* field;
  int64_t index;
};

std::string PathOf(const Place* place) {
  if (place == nullptr) return "";
  const std::string name = absl::StrCat(PathOf(place->parent), place->field->name());
  return place->field->is_repeated() ? absl::StrCat(name, "[", place->index, "].") : absl::StrCat(name, ".");
}

// Whether the parser takes a field of this wire type for `field`, rather than for one that it does not know.
bool IsWireTypeOf(const FieldDescriptor* field, WireFormatLite::WireType type) {
  return type == WireFormat::WireTypeForFieldType(field->type()) ||
         (field->is_packable() && type == WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

absl::Status CheckMessage(CodedInputStream* in, const Descriptor* type, const std::string& whole, const Place* place) {
  std::map<const FieldDescriptor*, int64_t> counts;
  while (const uint32_t tag = in->ReadTag()) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const FieldDescriptor* field = type->FindFieldByNumber(number);
    if (field == nullptr || !IsWireTypeOf(field, WireFormatLite::GetTagWireType(tag))) {
      return UnknownField(absl::StrCat(PathOf(place), number));
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!WireFormatLite::SkipField(in, tag)) return MalformedMessage(whole);
      continue;
    }
    const Place within = {place, field, counts[field]++};
    uint32_t length;
    if (!in->ReadVarint32(&length)) return MalformedMessage(whole);
    // A limit beyond the one that there is already would be ignored.
    const int left = in->BytesUntilLimit();
    if (left >= 0 && length > static_cast<uint32_t>(left)) return MalformedMessage(whole);
    const CodedInputStream::Limit limit = in->PushLimit(static_cast<int>(length));
    absl::Status status = CheckMessage(in, field->message_type(), whole, &within);
    if (!status.ok()) return status;
    if (in->BytesUntilLimit() != 0) return MalformedMessage(whole);
    in->PopLimit(limit);
  }
  if (!in->ConsumedEntireMessage()) return MalformedMessage(whole);
  for (const auto& [field, count] : counts) {
    if (!field->is_repeated() || count <= kMaxRepeated) continue;
    return InvalidField(absl::StrCat(PathOf(place), field->name()), absl::StrCat("at most ", kMaxRepeated),
                        absl::StrCat(count));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckOnWire(const grpc::ByteBuffer& buffer, const Descriptor* type) {
  grpc::ByteBuffer bytes = buffer;  // the slices, not what is in them
  grpc::ProtoBufferReader reader(&bytes);
  if (!reader.status().ok()) return MalformedMessage(type->full_name());
  CodedInputStream in(&reader);
  return CheckMessage(&in, type, type->full_name(), nullptr);
}

absl::Status CheckOnWire(absl::string_view bytes, const Descriptor* type) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
  return CheckMessage(&in, type, type->full_name(), nullptr);
}

}  // namespace adamant::wire
