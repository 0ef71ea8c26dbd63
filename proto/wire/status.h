// The one place where absl::Status and grpc::Status meet.
//
// Thread-safe: free functions without state. The two are images of each other: code, message, and the payloads of
// error.h, which travel in `grpc-status-details-bin` as a google.rpc.Status of at most 4 KiB.
#ifndef ADAMANT_PROTO_WIRE_STATUS_H_
#define ADAMANT_PROTO_WIRE_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace adamant::wire {

// Lossless where texts are short: a message is cut to 2 KiB as it travels (a byte that gRPC percent-encodes is three),
// `ErrorDetail.set` and `.field` to 512 bytes. So every error fits into the 8 KiB of trailers that all clients take.
grpc::Status ToGrpcStatus(const absl::Status& status);

// Details that are not a google.rpc.Status are left out; code and message stand without them.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace adamant::wire

#endif  // ADAMANT_PROTO_WIRE_STATUS_H_
