// See tensor_message.h. The decoder accepts and refuses exactly what protobuf's own parser does, apart from the errors
// that the header names; tests/fuzz holds it to that.
#include "proto/wire/tensor_message.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/error/error.h"
#include "proto/wire/message_check.h"
#include "proto/wire/tensor_message_tags.h"

namespace adamant::wire {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;

// A header of so many bytes at most is small once it is parsed, too, whatever is in it.
constexpr size_t kSmallHeaderBytes = size_t{64} << 10;

// One of a chunk's `values`.
constexpr int64_t kValueBytes = sizeof(float);

absl::Status HeaderTooLarge() {
  return Error(
      absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_MESSAGE_TOO_LARGE,
      ExpectedGot(absl::StrCat("at most ", kMaxHeaderBytes, " bytes, in at most ", kMaxHeaders, " pieces"), "more"),
      "header");
}

}  // namespace

absl::Status MalformedMessage(absl::string_view type, absl::string_view field) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_MALFORMED_MESSAGE,
               ExpectedGot(absl::StrCat("a valid ", type), "bytes that are not one"), field);
}

absl::Status UnknownField(absl::string_view path) {
  return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_UNKNOWN_FIELD,
               ExpectedGot("fields that this version knows", "one that it does not know"), path);
}

size_t SliceCursor::Piece(size_t n) {
  while (position_ == end_) {
    position_ = next_->begin();
    end_ = next_->end();
    ++next_;
  }
  return std::min<size_t>(n, end_ - position_);
}

void SliceCursor::Read(void* to, size_t n) {
  for (char* out = static_cast<char*>(to); n > 0;) {
    const size_t piece = Piece(n);
    std::memcpy(out, position_, piece);
    position_ += piece;
    out += piece;
    n -= piece;
  }
}

uint64_t SliceCursor::ReadVarint() {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    uint8_t byte;
    Read(&byte, 1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}

void SliceCursor::Visit(int64_t n, int64_t element_bytes,
                        absl::FunctionRef<void(const uint8_t* bytes, int64_t count)> visit) {
  while (n > 0) {
    const int64_t whole = static_cast<int64_t>(Piece(n * element_bytes)) / element_bytes;
    if (whole > 0) {
      visit(position_, whole);
      position_ += whole * element_bytes;
      n -= whole;
    } else {
      uint8_t element[sizeof(float)];
      Read(element, element_bytes);
      visit(element, 1);
      --n;
    }
  }
}

void SliceCursor::Skip(size_t n) {
  while (n > 0) {
    const size_t piece = Piece(n);
    position_ += piece;
    n -= piece;
  }
}

// Reads the fields of one message, or of one within it. A Read returns false where the bytes end too early or are none
// of what it reads.
class TensorMessage::FieldReader {
 public:
  FieldReader(SliceCursor at, int64_t bytes) : at_(at), left_(bytes) {}

  bool done() const { return left_ == 0; }
  int64_t left() const { return left_; }

  // A tag is a varint of at most 5 bytes. No field has number 0; groups end where none began; types 6 and 7 are none.
  bool ReadTag(uint32_t* tag) {
    uint64_t value;
    if (!ReadVarint(5, &value)) return false;
    *tag = static_cast<uint32_t>(value);
    return WireFormatLite::GetTagFieldNumber(*tag) != 0 && (*tag & 7) <= WireFormatLite::WIRETYPE_FIXED32 &&
           (*tag & 7) != WireFormatLite::WIRETYPE_END_GROUP;
  }

  bool ReadVarint(uint64_t* value) { return ReadVarint(10, value); }

  // A length of at most 5 bytes, and of no more than there is.
  bool ReadLength(int64_t* length) {
    uint64_t value;
    if (!ReadVarint(5, &value)) return false;
    *length = static_cast<int64_t>(value);
    return *length <= left_;
  }

  // How many bytes the varint takes that comes next; 0 if there is none. Stays where it is.
  int64_t VarintBytes() const {
    FieldReader ahead = *this;
    uint64_t value;
    return ahead.ReadVarint(&value) ? left_ - ahead.left_ : 0;
  }

  // Moves past `n` bytes and returns where they are. Requires: n <= left().
  SliceCursor Take(int64_t n) {
    const SliceCursor bytes = at_;
    at_.Skip(n);
    left_ -= n;
    return bytes;
  }

 private:
  // The bits beyond the type's are dropped, as protobuf does.
  bool ReadVarint(int max_bytes, uint64_t* value) {
    *value = 0;
    for (int i = 0; i < max_bytes && left_ > 0; ++i) {
      uint8_t byte;
      at_.Read(&byte, 1);
      --left_;
      *value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) return true;
    }
    return false;
  }

  SliceCursor at_;
  int64_t left_;
};

// The bytes of a repeated field of one chunk, which may come in several pieces: one stays where it is, and when there
// are more they are all copied.
class TensorMessage::Pieces {
 public:
  void Add(SliceCursor piece, int64_t bytes) {
    if (bytes_ == 0) {
      first_ = piece;
    } else if (bytes > 0) {
      if (gathered_.empty()) {
        gathered_.resize(bytes_);
        first_.Read(gathered_.data(), bytes_);
      }
      gathered_.resize(bytes_ + bytes);
      piece.Read(gathered_.data() + bytes_, bytes);
    }
    bytes_ += bytes;
  }

  int64_t bytes() const { return bytes_; }

  // Where they are. What was copied is kept in `gathered`, and stays where it is when that is moved.
  SliceCursor Keep(std::vector<std::vector<uint8_t>>* gathered) {
    if (gathered_.empty()) return first_;
    gathered->push_back(std::move(gathered_));
    return SliceCursor(gathered->back().data(), gathered->back().data() + bytes_);
  }

 private:
  SliceCursor first_;
  std::vector<uint8_t> gathered_;
  int64_t bytes_ = 0;
};

absl::StatusOr<TensorMessage> TensorMessage::Decode(const grpc::ByteBuffer& buffer, absl::string_view type) {
  TensorMessage message;
  absl::Status status = Decode(buffer, type, &message);
  if (!status.ok()) return status;
  return message;
}

absl::Status TensorMessage::Decode(const grpc::ByteBuffer& buffer, absl::string_view type, TensorMessage* message) {
  *message = TensorMessage();
  if (!buffer.Dump(&message->slices_).ok()) return MalformedMessage(type);
  FieldReader reader(SliceCursor(message->slices_.data()), buffer.Length());
  int64_t header_bytes = 0;
  while (!reader.done()) {
    uint32_t tag;
    int64_t length;
    uint64_t value;
    if (!reader.ReadTag(&tag)) return MalformedMessage(type);
    switch (tag) {
      case tag::kHeader:
        if (!reader.ReadLength(&length)) return MalformedMessage(type);
        header_bytes += length;
        if (message->headers_.size() == kMaxHeaders || header_bytes > kMaxHeaderBytes) return HeaderTooLarge();
        message->headers_.emplace_back(length, '\0');
        reader.Take(length).Read(message->headers_.back().data(), length);
        break;
      case tag::kLast:
        if (!reader.ReadVarint(&value)) return MalformedMessage(type);
        message->last_ = value != 0;
        break;
      case tag::kChunks: {
        if (!reader.ReadLength(&length)) return MalformedMessage(type);
        absl::Status status = message->DecodeChunk(FieldReader(reader.Take(length), length), type);
        if (!status.ok()) return status;
        break;
      }
      default:
        return UnknownField(absl::StrCat(WireFormatLite::GetTagFieldNumber(tag)));
    }
  }
  return absl::OkStatus();
}

absl::Status TensorMessage::DecodeChunk(FieldReader reader, absl::string_view type) {
  if (chunks_.size() == kMaxChunks) {
    return Error(absl::StatusCode::kInvalidArgument, v1::ERROR_REASON_MALFORMED_MESSAGE,
                 ExpectedGot(absl::StrCat("at most ", kMaxChunks, " chunks in one message"), "more"), "chunks");
  }
  Chunk chunk;
  SliceCursor data;
  int64_t data_bytes = 0;
  Pieces values;
  bool whole_values = true;
  Pieces rows;

  const auto add_values = [&](int64_t bytes) {
    values.Add(reader.Take(bytes), bytes);
    whole_values = whole_values && bytes % kValueBytes == 0;
  };
  // Counts the rows, which are varints, in the next `bytes` bytes. Returns false if they are none.
  const auto add_rows = [&](int64_t bytes) {
    const SliceCursor piece = reader.Take(bytes);
    FieldReader varints(piece, bytes);
    for (uint64_t row; !varints.done(); ++chunk.row_count_) {
      if (!varints.ReadVarint(&row)) return false;
    }
    rows.Add(piece, bytes);
    return true;
  };

  while (!reader.done()) {
    uint32_t tag;
    int64_t length;
    uint64_t value;
    if (!reader.ReadTag(&tag)) return MalformedMessage(type);
    switch (tag) {
      case tag::kTensor:
        if (!reader.ReadVarint(&value)) return MalformedMessage(type);
        chunk.tensor_ = static_cast<int32_t>(value);
        break;
      case tag::kOffset:
        if (!reader.ReadVarint(&value)) return MalformedMessage(type);
        chunk.offset_ = static_cast<int64_t>(value);
        break;
      case tag::kSlot:
        if (!reader.ReadVarint(&value)) return MalformedMessage(type);
        chunk.slot_ = static_cast<v1::Slot>(static_cast<int32_t>(value));
        break;
      case tag::kDtype:
        if (!reader.ReadVarint(&value)) return MalformedMessage(type);
        chunk.dtype_ = static_cast<v1::Dtype>(static_cast<int32_t>(value));
        break;
      case tag::kPackedRows:
        if (!reader.ReadLength(&length) || !add_rows(length)) return MalformedMessage(type);
        break;
      case tag::kOneRow:
        length = reader.VarintBytes();
        if (length == 0 || !add_rows(length)) return MalformedMessage(type);
        break;
      case tag::kPackedValues:
        if (!reader.ReadLength(&length)) return MalformedMessage(type);
        add_values(length);
        break;
      case tag::kOneValue:
        if (reader.left() < kValueBytes) return MalformedMessage(type);
        add_values(kValueBytes);
        break;
      case tag::kData:
        // The last one counts, as in every protobuf parser.
        if (!reader.ReadLength(&length)) return MalformedMessage(type);
        data = reader.Take(length);
        data_bytes = length;
        break;
      default:
        return UnknownField(absl::StrCat("chunks[", chunks_.size(), "].", WireFormatLite::GetTagFieldNumber(tag)));
    }
  }

  if (chunk.dtype_ == v1::DTYPE_UNSPECIFIED) chunk.dtype_ = v1::DTYPE_FLOAT32;
  const int64_t values_bytes = values.bytes();
  absl::Status status = CheckElements(chunk, data_bytes, values_bytes, whole_values);
  if (!status.ok()) return status;
  chunk.form_ = values_bytes > 0 ? ChunkForm::kValues : ChunkForm::kData;
  chunk.count_ = (data_bytes + values_bytes) / ElementBytes(chunk.dtype_);
  chunk.elements_ = data_bytes > 0 ? data : values.Keep(&gathered_);
  chunk.rows_ = rows.Keep(&gathered_);
  chunks_.push_back(chunk);
  return absl::OkStatus();
}

absl::Status TensorMessage::CheckElements(const Chunk& chunk, int64_t data_bytes, int64_t values_bytes,
                                          bool whole_values) const {
  const auto invalid = [&](v1::ErrorReason reason, absl::string_view field, absl::string_view message) {
    v1::ErrorDetail detail;
    detail.set_reason(reason);
    detail.set_field(absl::StrCat("chunks[", chunks_.size(), "]", field));
    detail.set_tensor(chunk.tensor_);
    detail.set_offset(chunk.offset_);
    return Error(absl::StatusCode::kInvalidArgument, message, detail);
  };
  const auto malformed = [&](absl::string_view message) {
    return invalid(v1::ERROR_REASON_MALFORMED_CHUNK, "", message);
  };
  const auto invalid_dtype = [&](absl::string_view expected) {
    return invalid(v1::ERROR_REASON_INVALID_FIELD, ".dtype", ExpectedGot(expected, EnumName(chunk.dtype_)));
  };
  const int64_t element_bytes = ElementBytes(chunk.dtype_);
  if (element_bytes == 0) return invalid_dtype("DTYPE_FLOAT32, DTYPE_BFLOAT16 or DTYPE_FLOAT16");
  if (!whole_values) return malformed(ExpectedGot("`values` of 4 bytes each", "a part of one"));
  if (data_bytes % element_bytes != 0) {
    return malformed(absl::StrCat(
        ExpectedGot(absl::StrCat("`data` of ", element_bytes, " bytes an element, ", EnumName(chunk.dtype_)),
                    absl::StrCat(data_bytes, " bytes")),
        "; is this ",
        data_bytes % 2 == 0 ? "float16, bfloat16 or int8? The first two go with their `dtype`" : "int8?"));
  }
  if (data_bytes > 0 && values_bytes > 0) return malformed(ExpectedGot("`data` or `values`", "both"));
  if (values_bytes > 0 && chunk.dtype_ != v1::DTYPE_FLOAT32) return invalid_dtype("DTYPE_FLOAT32 with `values`");
  return absl::OkStatus();
}

absl::Status TensorMessage::ParseHeader(google::protobuf::Message* header) const {
  header->Clear();
  size_t size = 0;
  for (const std::string& bytes : headers_) size += bytes.size();
  if (size > kSmallHeaderBytes) {
    for (const std::string& bytes : headers_) {
      absl::Status status = CheckOnWire(bytes, header->GetDescriptor());
      if (!status.ok()) return Within("header", status);
    }
  }
  for (const std::string& bytes : headers_) {
    if (header->MergeFromString(bytes)) continue;
    header->Clear();
    return MalformedMessage(header->GetDescriptor()->full_name(), "header");
  }
  const std::string unknown = FindUnknownField(*header);
  return unknown.empty() ? absl::OkStatus() : UnknownField(absl::StrCat("header.", unknown));
}

std::string FindUnknownField(const google::protobuf::Message& message) {
  const google::protobuf::Reflection* reflection = message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection->GetUnknownFields(message);
  if (!unknown.empty()) return absl::StrCat(unknown.field(0).number());

  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      const std::string path = FindUnknownField(reflection->GetMessage(message, field));
      if (!path.empty()) return absl::StrCat(field->name(), ".", path);
      continue;
    }
    for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
      const std::string path = FindUnknownField(reflection->GetRepeatedMessage(message, field, i));
      if (!path.empty()) return absl::StrCat(field->name(), "[", i, "].", path);
    }
  }
  return "";
}

}  // namespace adamant::wire
