// Places for calls, without a network: gRPC keeps what a call starts until the call is bound, which these never are,
// and the test tells a call what gRPC would.
#ifndef ADAMANT_TESTS_RPC_OPEN_CALLS_FIXTURE_H_
#define ADAMANT_TESTS_RPC_OPEN_CALLS_FIXTURE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "server/core/memory/budget.h"
#include "server/rpc/call.h"
#include "server/rpc/open_calls.h"
#include "server/rpc/waiting_room.h"
#include "tests/core/manual_clock.h"

namespace adamant::rpc {

inline constexpr absl::Duration kPatience = absl::Seconds(10);
inline constexpr double kMinRate = 1000;
inline constexpr absl::Duration kThinkTime = absl::Hours(2);
inline constexpr int kPlaces = 2;
inline constexpr int kMayWait = 2;

// A call that does nothing by itself.
class QuietCall final : public Call {
 public:
  explicit QuietCall(OpenCalls* open_calls, std::function<void()> at_open = nullptr)
      : Call(open_calls, nullptr, CallShape::kStream), at_open_(std::move(at_open)) {}
  QuietCall(OpenCalls* open_calls, std::string connection)
      : Call(open_calls, nullptr, CallShape::kStream), connection_(std::move(connection)) {}

  std::string Connection() const override { return connection_; }

  using Call::BeginOperation;
  using Call::End;
  using Call::EndOperation;
  using Call::Read;
  using Call::ShrinkCharge;
  using Call::Write;

  // What gRPC says when a message has come or left, when the client has cancelled, and when it is done with the call.
  void HaveRead() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnReadDone(true); }
  void HaveWritten() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnWriteDone(true); }
  void HaveCancelled() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnCancel(); }
  void BeDone() { static_cast<grpc::ServerGenericBidiReactor*>(this)->OnDone(); }

  // Has the call begin with an operation and a read, as most do, rather than idle.
  void ReadFirst() { reads_first_ = true; }

  bool opened() const { return opened_; }
  int overs() const { return overs_; }

 private:
  void OnOpen() override {
    opened_ = true;
    if (at_open_) at_open_();
    if (reads_first_) {
      BeginOperation({.bytes = 0});
      Read();
    } else {
      EndOperation();
    }
  }
  void OnMessage(const grpc::ByteBuffer&) override {}
  void OnHalfClose() override {}
  void OnWritten() override {}
  void OnOver() override { ++overs_; }

  const std::function<void()> at_open_;
  const std::string connection_;
  bool reads_first_ = false;
  bool opened_ = false;
  int overs_ = 0;
};

class OpenCallsTest : public testing::Test {
 protected:
  // A call that has been let in, or not.
  std::shared_ptr<QuietCall> Open() {
    auto call = std::make_shared<QuietCall>(&open_calls_);
    call->Open();
    return call;
  }

  // The same, on a connection of this name. It is idle, and its next message is awaited.
  std::shared_ptr<QuietCall> OpenOn(const std::string& connection) {
    auto call = std::make_shared<QuietCall>(&open_calls_, connection);
    call->Open();
    if (call->opened()) call->Read();
    return call;
  }

  // Ends a call, and gRPC is done with it.
  static void Close(std::shared_ptr<QuietCall> call) {
    call->End(absl::OkStatus());
    call->BeDone();
  }

  // A large step that waits for memory, because another one has all of it.
  class MemoryWanted {
   public:
    explicit MemoryWanted(core::Budget* memory) : memory_(memory), held_(*memory->TryReserve(memory->capacity())) {
      wait_ = memory->Reserve(1, absl::InfiniteDuration(), [](const absl::StatusOr<core::Grant>&) {});
    }
    ~MemoryWanted() { memory_->Cancel(wait_); }

   private:
    core::Budget* const memory_;
    const core::Grant held_;
    core::Budget::WaitId wait_;
  };

  core::ManualClock clock_;
  core::Budget streams_{"streams", kPlaces* kStreamBytes, &clock_};
  WaitingRoom waiting_{"waiting", kMayWait, &clock_};
  core::Budget memory_{"inflight", 100, &clock_};
  OpenCalls open_calls_{{&streams_, &waiting_, &memory_, &clock_}, {kPatience, kMinRate, kThinkTime}};
};

}  // namespace adamant::rpc

#endif  // ADAMANT_TESTS_RPC_OPEN_CALLS_FIXTURE_H_
