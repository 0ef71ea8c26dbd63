// How many calls there are that gRPC has handed over and is not done with: those that are served or wait, and those
// that are over for their clients, but still take memory, because gRPC has not come to them yet.
#ifndef ADAMANT_SERVER_RPC_LIVE_CALLS_H_
#define ADAMANT_SERVER_RPC_LIVE_CALLS_H_

#include <atomic>
#include <cstdint>

namespace adamant::rpc {

// Counts one call for as long as it lives. Thread-safe.
class LiveCall {
 public:
  LiveCall() { count_.fetch_add(1, std::memory_order_relaxed); }
  ~LiveCall() { count_.fetch_sub(1, std::memory_order_relaxed); }
  LiveCall(const LiveCall&) = delete;
  LiveCall& operator=(const LiveCall&) = delete;

  // In this process.
  static int64_t Count() { return count_.load(std::memory_order_relaxed); }

 private:
  static inline std::atomic<int64_t> count_ = 0;
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_LIVE_CALLS_H_
