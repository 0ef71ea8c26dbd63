// A core that knows the wire, and how a kernel is made.
#include <grpcpp/grpcpp.h>

#include "adamant/v1/service.grpc.pb.h"
#include "kernels/lanes/avx2.h"
#include "kernels/update.h"
