// The calls that wait for a place, whatever their kind: how many may, and who is refused when they are too many.
#ifndef ADAMANT_SERVER_RPC_WAITING_ROOM_H_
#define ADAMANT_SERVER_RPC_WAITING_ROOM_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/core/base/clock.h"
#include "server/core/base/mutex.h"
#include "server/core/memory/budget.h"

namespace adamant::rpc {

class Call;

// The charge of a call that waits for a place: what HTTP/2 lets a client send before anybody reads, its state, and
// kUsualMetadataBytes of metadata; more of that is charged for beside. Measured, with 64 KiB sent: 86 KiB each, and 180
// if these are empty messages, each in a frame of its own.
inline constexpr int64_t kWaitingCallBytes = int64_t{192} << 10;
inline constexpr int64_t kUsualMetadataBytes = int64_t{8} << 10;

// Thread-safe. It must outlive its calls.
class WaitingRoom {
 public:
  // For `calls` calls with the usual metadata. `name` and `clock` as of core::Budget.
  WaitingRoom(absl::string_view name, int calls, core::Clock* clock);

  // A call comes to wait; what pays for it until gRPC is done with it or it has a place. If there is no room, the call
  // that came last of the connection with the most calls here is refused in its stead (Call::Refuse), as long as that
  // connection has more of them than the call's own would have. Error: RESOURCE_EXHAUSTED (TOO_MANY_STREAMS, with
  // RetryInfo).
  absl::StatusOr<core::Grant> Enter(const std::shared_ptr<Call>& call, const std::string& connection);
  // The call does not wait any more, or never did.
  void Leave(Call* call);

  // What the calls here are charged to, and those that were refused and still have to leave.
  const core::Budget& budget() const { return budget_; }

 private:
  struct Guest {
    Call* call;
    int64_t bytes;
  };
  using Guests = std::list<Guest>;
  using Connections = std::map<std::string, Guests>;
  struct Seat {
    Connections::iterator connection;
    Guests::iterator guest;
  };

  // Takes the guest off the list.
  void Remove(Call* call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t capacity_;  // of the calls that wait
  core::Budget budget_;

  core::Mutex mutex_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  Connections connections_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Call*, Seat> seats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adamant::rpc

#endif  // ADAMANT_SERVER_RPC_WAITING_ROOM_H_
