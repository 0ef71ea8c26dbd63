// A look at a message as it is on the wire, before anything is built of it.
//
// Thread-safe: free functions without state.
#ifndef ADAMANT_PROTO_WIRE_MESSAGE_CHECK_H_
#define ADAMANT_PROTO_WIRE_MESSAGE_CHECK_H_

#include <google/protobuf/descriptor.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace adamant::wire {

// The most elements of a repeated message field that a message may bring.
inline constexpr int64_t kMaxRepeated = 65536;

// Refuses what would take far more memory than its bytes once it is parsed: 4 MiB of unknown fields become 219 MiB, of
// map entries 310. Errors, all INVALID_ARGUMENT: MALFORMED_MESSAGE; UNKNOWN_FIELD for a field that `type`, or a message
// within, does not have by this number and wire type; INVALID_FIELD for a repeated message field with more than
// kMaxRepeated elements. What passes may still be refused by the parser.
absl::Status CheckOnWire(const grpc::ByteBuffer& buffer, const google::protobuf::Descriptor* type);
absl::Status CheckOnWire(absl::string_view bytes, const google::protobuf::Descriptor* type);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_MESSAGE_CHECK_H_
