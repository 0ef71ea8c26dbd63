// See protobuf_comparison.h.
#include "tests/wire/protobuf_comparison.h"

#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "adamant/v1/step.pb.h"
#include "proto/error/error.h"
#include "proto/wire/tensor_message.h"
#include "tests/wire/byte_buffers.h"

namespace adamant::wire {
namespace {

bool HasUnknownField(const v1::StepRequest& message) {
  v1::StepRequest known = message;
  known.DiscardUnknownFields();
  return known.ByteSizeLong() != message.ByteSizeLong();
}

bool HasMalformedChunk(const v1::StepRequest& message) {
  for (const v1::TensorChunk& chunk : message.chunks()) {
    const bool both = !chunk.data().empty() && !chunk.values().empty();
    if (both || chunk.data().size() % sizeof(float) != 0) return true;
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
    default:
      return absl::StrCat("another reason: ", status.ToString());
  }
}

std::string DifferenceInChunk(const v1::TensorChunk& expected, TensorMessage::Chunk chunk) {
  if (chunk.tensor() != expected.tensor()) return "another tensor";
  if (chunk.offset() != expected.offset()) return "another offset";
  if (chunk.slot() != expected.slot()) return "another slot";
  const ChunkForm form = expected.values().empty() ? ChunkForm::kData : ChunkForm::kValues;
  const char* bytes =
      form == ChunkForm::kData ? expected.data().data() : reinterpret_cast<const char*>(expected.values().data());
  const int64_t count = form == ChunkForm::kData ? expected.data().size() / sizeof(float) : expected.values_size();
  if (chunk.count() != count) return "another count";
  if (count == 0) return "";
  if (chunk.form() != form) return "another form";
  // In two reads: the second goes on where the first ended.
  std::vector<float> elements(count);
  chunk.Read(elements.data(), count / 2);
  chunk.Read(elements.data() + count / 2, count - count / 2);
  return std::memcmp(elements.data(), bytes, count * sizeof(float)) == 0 ? "" : "other elements";
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
