// The real stub.
//
// Thread-safe.
#ifndef ADAMANT_CLIENT_SRC_GRPC_STUB_H_
#define ADAMANT_CLIENT_SRC_GRPC_STUB_H_

#include <grpcpp/channel.h>

#include <memory>

#include "client/src/stub.h"

namespace adamant {

std::unique_ptr<Stub> MakeGrpcStub(std::shared_ptr<grpc::Channel> channel);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_GRPC_STUB_H_
