// The decoder against protobuf's own parser, which says what a message means.
#ifndef ADAMANT_TESTS_WIRE_PROTOBUF_COMPARISON_H_
#define ADAMANT_TESTS_WIRE_PROTOBUF_COMPARISON_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>

namespace adamant::wire {

// Decodes `buffer` as a StepRequest by TensorMessage and by the generated class. Returns what differs; nothing if both
// find the same content, or both refuse it, or TensorMessage refuses what it alone has to: unknown fields, malformed
// chunks and types of elements that are none.
std::string DifferenceFromProtobuf(const grpc::ByteBuffer& buffer);

}  // namespace adamant::wire

#endif  // ADAMANT_TESTS_WIRE_PROTOBUF_COMPARISON_H_
