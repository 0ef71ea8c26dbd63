// Tensors between the caller's memory and a stream's messages.
//
// Thread-compatible.
#ifndef ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_
#define ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "adamant/connection.h"
#include "client/src/stub.h"
#include "proto/wire/tensor_message.h"

namespace adamant {

// Sends `header` and all elements of `sources`, rounded to `dtype`, and says that they are all. One message if they fit
// into `message_bytes`; otherwise the header alone, then messages of that size. Unless they are of 16 bits, the
// messages refer to the elements where they lie until `hold` is released.
absl::Status SendTensors(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                         v1::Dtype dtype, int64_t message_bytes, std::shared_ptr<const void> hold, ByteStream* stream);

// Takes the chunks of one reply into the caller's spans, and sees to it that every element comes exactly once.
class TensorReceiver {
 public:
  // `targets` outlives this. Where `pass_over_empty`, elements of tensors whose span is empty are dropped.
  explicit TensorReceiver(absl::Span<const ReadCall::Target> targets, bool pass_over_empty = false);

  // Copies, or widens, the message's elements to where they belong. INVALID_ARGUMENT if a span is shorter than its
  // tensor; INTERNAL if the server sent what it should not.
  absl::Status Take(wire::TensorMessage* message);

  // To be called when all messages have come. INVALID_ARGUMENT if a span is longer than its tensor.
  absl::Status Finish() const;

 private:
  absl::Span<const ReadCall::Target> targets_;
  bool pass_over_empty_;
  // How many elements of each tensor of each target have come.
  std::vector<std::vector<int64_t>> received_;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_
