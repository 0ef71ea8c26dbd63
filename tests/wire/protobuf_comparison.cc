// See protobuf_comparison.h.
#include "tests/wire/protobuf_comparison.h"

#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "adamant/v1/step.pb.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "tests/wire/byte_buffers.h"
#include "tests/wire/sample_messages.h"

namespace adamant::wire {
namespace {

bool HasUnknownField(const v1::StepRequest& message) {
  v1::StepRequest known = message;
  known.DiscardUnknownFields();
  return known.ByteSizeLong() != message.ByteSizeLong();
}

bool Is16Bit(v1::Dtype dtype) { return dtype == v1::DTYPE_BFLOAT16 || dtype == v1::DTYPE_FLOAT16; }

bool HasMalformedChunk(const v1::StepRequest& message) {
  for (const v1::TensorChunk& chunk : message.chunks()) {
    const bool both = !chunk.data().empty() && !chunk.values().empty();
    if (both || chunk.data().size() % (Is16Bit(chunk.dtype()) ? 2 : 4) != 0) return true;
  }
  return false;
}

bool HasInvalidDtype(const v1::StepRequest& message) {
  for (const v1::TensorChunk& chunk : message.chunks()) {
    if (!v1::Dtype_IsValid(chunk.dtype()) || (Is16Bit(chunk.dtype()) && !chunk.values().empty())) return true;
  }
  return false;
}

std::string DifferenceInRefusal(const absl::Status& status, bool valid, size_t bytes, const v1::StepRequest& message) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return absl::StrCat("another code: ", status.ToString());
  switch (GetErrorDetail(status).reason()) {
    case v1::ERROR_REASON_MALFORMED_MESSAGE:
      return valid ? "refuses a valid message" : "";
    case v1::ERROR_REASON_UNKNOWN_FIELD:
      return valid && !HasUnknownField(message) ? "finds an unknown field where none is" : "";
    case v1::ERROR_REASON_MESSAGE_TOO_LARGE:
      // Two bytes for each header that is one too many.
      return bytes <= 2 * kMaxHeaders ? "refuses few headers" : "";
    case v1::ERROR_REASON_MALFORMED_CHUNK:
      return valid && !HasMalformedChunk(message) ? "refuses a valid chunk" : "";
    case v1::ERROR_REASON_INVALID_FIELD:
      return valid && !HasInvalidDtype(message) ? "refuses a valid type of elements" : "";
    default:
      return absl::StrCat("another reason: ", status.ToString());
  }
}

std::string DifferenceInChunk(const v1::TensorChunk& expected, TensorMessage::Chunk chunk) {
  if (chunk.tensor() != expected.tensor()) return "another tensor";
  if (chunk.offset() != expected.offset()) return "another offset";
  if (chunk.slot() != expected.slot()) return "another slot";
  const v1::Dtype dtype = expected.dtype() == v1::DTYPE_UNSPECIFIED ? v1::DTYPE_FLOAT32 : expected.dtype();
  if (chunk.dtype() != dtype) return "another type of elements";
  if (chunk.row_count() != expected.rows_size()) return "another number of rows";
  std::vector<int64_t> rows(chunk.row_count());
  // In two turns, as the elements below.
  chunk.ReadRows(rows.data(), chunk.row_count() / 2);
  chunk.ReadRows(rows.data() + chunk.row_count() / 2, chunk.row_count() - chunk.row_count() / 2);
  if (rows != std::vector<int64_t>(expected.rows().begin(), expected.rows().end())) return "other rows";
  const int element_bytes = Is16Bit(dtype) ? 2 : 4;
  const ChunkForm form = expected.values().empty() ? ChunkForm::kData : ChunkForm::kValues;
  std::string bytes = expected.data();
  if (form == ChunkForm::kValues) bytes = AsData({expected.values().begin(), expected.values().end()});
  const int64_t count = static_cast<int64_t>(bytes.size()) / element_bytes;
  if (chunk.count() != count) return "another count";
  if (count > 0 && chunk.form() != form) return "another form";
  // In two turns: the second goes on where the first ended.
  TensorMessage::Chunk same = chunk;
  const std::string half = BytesOf(&same, count / 2);
  if (half + BytesOf(&same, count - count / 2) != bytes) return "other elements";
  if (dtype != v1::DTYPE_FLOAT32) return "";
  std::vector<float> elements(count);
  chunk.Read(elements.data(), count / 2);
  chunk.Read(elements.data() + count / 2, count - count / 2);
  return AsData(elements) == bytes ? "" : "other elements where they are copied";
}

}  // namespace

std::string DifferenceFromProtobuf(const grpc::ByteBuffer& buffer) {
  google::protobuf::LogSilencer silencer;  // Both parsers write to stderr about text that is not UTF-8.
  v1::StepRequest expected;
  const bool valid = expected.ParseFromString(Flat(buffer));

  absl::StatusOr<TensorMessage> message = TensorMessage::Decode(buffer);
  if (!message.ok()) return DifferenceInRefusal(message.status(), valid, buffer.Length(), expected);
  v1::StepHeader header;
  if (message->has_header()) {
    const absl::Status status = message->ParseHeader(&header);
    if (!status.ok()) return DifferenceInRefusal(status, valid, buffer.Length(), expected);
  }

  if (!valid) return "accepts what is not a valid message";
  if (HasUnknownField(expected)) return "overlooks an unknown field";
  if (HasMalformedChunk(expected)) return "overlooks a malformed chunk";
  if (HasInvalidDtype(expected)) return "overlooks an invalid type of elements";
  if (message->has_header() != expected.has_header()) return "another presence of the header";
  if (header.SerializeAsString() != expected.header().SerializeAsString()) return "another header";
  if (message->last() != expected.last()) return "another last";
  if (message->chunks().size() != static_cast<size_t>(expected.chunks_size())) return "another number of chunks";
  for (int i = 0; i < expected.chunks_size(); ++i) {
    const std::string difference = DifferenceInChunk(expected.chunks(i), message->chunks()[i]);
    if (!difference.empty()) return absl::StrCat("chunks[", i, "]: ", difference);
  }
  return "";
}

}  // namespace adamant::wire
