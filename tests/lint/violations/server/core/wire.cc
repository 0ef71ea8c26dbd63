// A core that knows the wire.
#include <grpcpp/grpcpp.h>

#include "adamant/v1/service.grpc.pb.h"
#include "kernels/adam.h"
