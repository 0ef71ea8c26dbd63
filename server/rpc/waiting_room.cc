#include "server/rpc/waiting_room.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/error/error.h"
#include "server/rpc/call.h"

namespace adamant::rpc {
namespace {

// Calls that may be on their way out at the same time because others came in their stead.
constexpr int64_t kMaxRefused = 64;

absl::Status TooManyCalls() {
  absl::BitGen random;
  return WithRetryDelay(Error(absl::StatusCode::kResourceExhausted, v1::ERROR_REASON_TOO_MANY_STREAMS,
                              "as many calls as this server carries are open, and as many as may wait do"),
                        absl::Milliseconds(absl::Uniform(random, 100, 300)));
}

}  // namespace

WaitingRoom::WaitingRoom(absl::string_view name, int calls, core::Clock* clock)
    : capacity_(calls * kWaitingCallBytes), budget_(name, capacity_ + kMaxRefused * kWaitingCallBytes, clock) {}

absl::StatusOr<core::Grant> WaitingRoom::Enter(const std::shared_ptr<Call>& call, const std::string& connection) {
  const int64_t bytes = kWaitingCallBytes + std::max<int64_t>(0, call->MetadataCost() - kUsualMetadataBytes);
  absl::StatusOr<core::Grant> charge = budget_.TryReserve(bytes);
  if (!charge.ok()) return TooManyCalls();
  std::vector<std::shared_ptr<Call>> refused;
  bool fits;
  {
    core::MutexLock lock(&mutex_);
    const auto own = connections_.try_emplace(connection).first;
    while (used_ + bytes > capacity_) {
      const auto most = std::max_element(connections_.begin(), connections_.end(), [](const auto& a, const auto& b) {
        return a.second.size() < b.second.size();
      });
      if (most->second.size() <= own->second.size() + 1) break;
      Call* const last = most->second.back().call;
      if (std::shared_ptr<Call> alive = last->weak_from_this().lock()) refused.push_back(std::move(alive));
      Remove(last);
    }
    fits = used_ + bytes <= capacity_;
    if (fits) {
      used_ += bytes;
      seats_[call.get()] = {own, own->second.insert(own->second.end(), {call.get(), bytes})};
    } else if (own->second.empty()) {
      connections_.erase(own);
    }
  }
  for (const std::shared_ptr<Call>& other : refused) other->Refuse(TooManyCalls());
  if (!fits) return TooManyCalls();
  return charge;
}

void WaitingRoom::Leave(Call* call) {
  core::MutexLock lock(&mutex_);
  Remove(call);
}

void WaitingRoom::Remove(Call* call) {
  const auto found = seats_.find(call);
  if (found == seats_.end()) return;
  const Seat seat = found->second;
  seats_.erase(found);
  used_ -= seat.guest->bytes;
  seat.connection->second.erase(seat.guest);
  if (seat.connection->second.empty()) connections_.erase(seat.connection);
}

}  // namespace adamant::rpc
