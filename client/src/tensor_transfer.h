// Tensors between the caller's memory and a stream's messages.
//
// Thread-compatible.
#ifndef ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_
#define ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "adamant/connection.h"
#include "client/src/stub.h"
#include "proto/wire/tensor_message.h"

namespace adamant {

// Sends `header` and all elements of `sources`, and of `rows`, rounded to `dtype`, and says that they are all. One
// message if they fit into `message_bytes`; otherwise the header alone, then messages of that size. Unless they are of
// 16 bits, the messages refer to the elements where they lie until `hold` is released. After each message `progress`,
// if there is one, is told how many elements of `sources` have been sent. Where there is `read`, it has the elements of
// `sources`, and its error is returned; the stream is then to be closed.
absl::Status SendTensors(const google::protobuf::MessageLite& header, absl::Span<const WriteCall::Source> sources,
                         absl::Span<const RowsGradient> rows, v1::Dtype dtype, int64_t message_bytes,
                         std::shared_ptr<const void> hold, ByteStream* stream, const Progress& progress = nullptr,
                         const ElementReader& read = nullptr);

// How many elements there are in all.
template <typename Element>
int64_t CountElements(absl::Span<const absl::Span<Element>> tensors) {
  int64_t count = 0;
  for (const absl::Span<Element> tensor : tensors) count += static_cast<int64_t>(tensor.size());
  return count;
}

// Takes the chunks of one reply into the caller's spans, and sees to it that every element comes exactly once.
class TensorReceiver {
 public:
  // `targets` outlives this.
  explicit TensorReceiver(absl::Span<const ReadCall::Target> targets);
  // The reply to a step with `rows`, for `parameters`: both outlive this. Of these tensors their rows come.
  TensorReceiver(const ReadCall::Target& parameters, absl::Span<const RowsGradient> rows);

  // Copies, or widens, the message's elements to where they belong. INVALID_ARGUMENT if a span is shorter than its
  // tensor; INTERNAL if the server sent what it should not.
  absl::Status Take(wire::TensorMessage* message);

  // How many elements of whole tensors have come to where they belong.
  int64_t taken() const { return taken_; }

  // To be called when all messages have come. INVALID_ARGUMENT if a span is longer than its tensor; INTERNAL if rows
  // are missing, unless they are not to come, as in the answer to a request that was applied before.
  absl::Status Finish(bool without_rows = false) const;

 private:
  // Rows of one tensor that are to come, ascending and each once, and how many of them have.
  struct Rows {
    int64_t width;
    std::vector<int64_t> expected;
    size_t received;
  };

  absl::Status TakeRows(wire::TensorMessage::Chunk* chunk);

  absl::Span<const ReadCall::Target> targets_;
  // How many elements of each tensor of each target have come.
  std::vector<std::vector<int64_t>> received_;
  std::map<int32_t, Rows> rows_;  // by tensor
  int64_t taken_ = 0;
};

}  // namespace adamant

#endif  // ADAMANT_CLIENT_SRC_TENSOR_TRANSFER_H_
