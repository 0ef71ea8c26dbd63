// The raw exchange that a step is compared with: a step's bytes up, then down, over gRPC, and nothing else. Messages,
// channel arguments and gather copies are a step's; each side sends from one piece of memory and receives into another.
#ifndef ADAMANT_TESTS_BENCH_EXCHANGE_H_
#define ADAMANT_TESTS_BENCH_EXCHANGE_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace adamant::bench {

// The answering side: reads the bytes that a call announces, sends as many, and so on. Thread-safe.
class ExchangeService : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;
};

// The asking side: one call, driven by the thread that uses it. Thread-compatible.
class ExchangeCall {
 public:
  // Rounds send `source` and receive into `sink`: of the same size, not overlapping, both outliving this and left
  // alone.
  ExchangeCall(std::shared_ptr<grpc::Channel> channel, absl::Span<const char> source, absl::Span<char> sink);
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
  void Write();

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
