// The real stub.
//
// Thread-safe.
#ifndef ADAMANT_CLIENT_SRC_GRPC_STUB_H_
#define ADAMANT_CLIENT_SRC_GRPC_STUB_H_

#include <memory>
#include <string>

#include "adamant/options.h"
#include "client/src/stub.h"

namespace adamant {

// A stub with a channel of its own to `target`.
std::unique_ptr<Stub> MakeGrpcStub(const std::string& target, const ClientOptions& options);

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_GRPC_STUB_H_
