// The raw exchange that a step is compared with: a step's bytes up, then down, over gRPC, and nothing else. Messages,
// channel arguments and gather copies are a step's, except where settings say otherwise; each side sends from one piece
// of memory and receives into another.
#ifndef ADAMANT_TESTS_BENCH_EXCHANGE_H_
#define ADAMANT_TESTS_BENCH_EXCHANGE_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/wire/tensor_message.h"

namespace adamant::bench {

// How an exchange uses gRPC. What is not set is as the server and the client library of this tree have it.
struct ExchangeSettings {
  // Which ends estimate the connection's bandwidth with pings: "on" (both), "off", "server" or "client"; empty: not
  // set.
  std::string probe;
  // Of both ends, in bytes: GRPC_ARG_HTTP2_MAX_FRAME_SIZE, GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES and the size of what
  // is read from the socket at a time. 0: not set.
  int frame_bytes = 0;
  int lookahead_bytes = 0;
  int read_chunk_bytes = 0;
  // What is written at a time. At most wire::kMaxMessageBytes.
  int message_bytes = wire::kMessageBytes;
  // The next message is asked for before the last one is copied to its place.
  bool overlap = false;
};

// Channel arguments and their values. Of two values of one argument gRPC takes the first.
using ChannelSettings = std::vector<std::pair<std::string, int>>;

// Of a peer's server.
ChannelSettings ServerChannelSettings(const ExchangeSettings& settings);
// Of a channel to a peer: for ClientOptions::channel_arguments.
void AddClientSettings(const ExchangeSettings& settings, grpc::ChannelArguments* arguments);

// The answering side: reads the bytes that a call announces, sends as many, and so on. Thread-safe.
class ExchangeService : public grpc::CallbackGenericService {
 public:
  explicit ExchangeService(ExchangeSettings settings = {}) : settings_(std::move(settings)) {}

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  const ExchangeSettings settings_;
};

// The asking side: one call, driven by the thread that uses it. Thread-compatible.
class ExchangeCall {
 public:
  // Rounds send `source` and receive into `sink`: of the same size, not overlapping, both outliving this and left
  // alone. The settings of the channel are the caller's to make.
  ExchangeCall(std::shared_ptr<grpc::Channel> channel, absl::Span<const char> source, absl::Span<char> sink,
               const ExchangeSettings& settings = {});
  ~ExchangeCall();
  ExchangeCall(const ExchangeCall&) = delete;
  ExchangeCall& operator=(const ExchangeCall&) = delete;

  // One exchange. After an error there is no other.
  absl::Status Round();

 private:
  // Operations complete as tags, each at most once outstanding: writes and reads overlap.
  enum Operation { kStart, kRead, kWrite };

  // Takes in one completed operation and starts what follows it.
  void Poll();
  void Read();
  void Write();

  const size_t message_bytes_;
  const bool overlap_;
  const absl::Span<const char> source_;
  const absl::Span<char> sink_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer incoming_;
  size_t sent_ = 0;
  size_t received_ = 0;
  bool started_ = false;
  bool writing_ = false;
  bool broken_ = false;
};

}  // namespace adamant::bench

#endif  // ADAMANT_TESTS_BENCH_EXCHANGE_H_
