// What elements are called on the wire, and what the kernels call them.
#ifndef ADAMANT_SERVER_RPC_ELEMENT_FORMAT_H_
#define ADAMANT_SERVER_RPC_ELEMENT_FORMAT_H_

#include <optional>

#include "adamant/v1/parameter_set.pb.h"
#include "kernels/formats.h"

namespace adamant::rpc {

// The format of 16 bits that `dtype` is; nothing if it is fp32.
inline std::optional<kernels::Format16> FormatOf(v1::Dtype dtype) {
  if (dtype == v1::DTYPE_BFLOAT16) return kernels::kBfloat16;
  if (dtype == v1::DTYPE_FLOAT16) return kernels::kFloat16;
  return std::nullopt;
}

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_ELEMENT_FORMAT_H_
