// Whoever wants to know what happens to a set.
#ifndef ADAMANT_SERVER_CORE_SET_WATCH_H_
#define ADAMANT_SERVER_CORE_SET_WATCH_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "adamant/v1/service.pb.h"
#include "server/core/base/mutex.h"

namespace adamant::core {

// Something that happened to a set, with `missed` unset. Shared by all who watch.
using SetEvent = std::shared_ptr<const v1::WatchParameterSetResponse>;

// One watcher's place: events that it has not taken yet, of which the oldest make room for new ones. Thread-safe.
class Watch {
 public:
  // So many events may lie ready. Those of a set with many groups and metrics take some 10 KiB each.
  static constexpr size_t kMostEvents = 8;

  // `notify` is called, from any thread and without a lock, when there is an event after Next has returned none. It
  // must not block.
  explicit Watch(absl::AnyInvocable<void()> notify) : notify_(std::move(notify)) {}
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // The oldest event that was not taken, with the number of those before it that were lost. Nothing where there is
  // none.
  std::optional<v1::WatchParameterSetResponse> Next();

  // Adds an event. Never waits for the watcher.
  void Add(SetEvent event);

 private:
  absl::AnyInvocable<void()> notify_;  // called by one thread at a time: by whoever has the set's turn

  Mutex mutex_;
  std::array<SetEvent, kMostEvents> events_ ABSL_GUARDED_BY(mutex_);  // a ring
  size_t first_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t missed_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_awaited_ ABSL_GUARDED_BY(mutex_) = false;
};

// All who watch a set, as they were at one moment. A watcher that has gone is null.
using Watches = std::vector<std::weak_ptr<Watch>>;

// Adds `event` to each of them.
void Tell(const Watches& watches, v1::WatchParameterSetResponse event);

}  // namespace adamant::core

#endif  // ADAMANT_SERVER_CORE_SET_WATCH_H_
