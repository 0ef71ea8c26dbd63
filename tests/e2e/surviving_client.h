// Clients that go on whatever becomes of the server, as docs/clients.md says, and know what their sets must be.
#ifndef ADAMANT_TESTS_E2E_SURVIVING_CLIENT_H_
#define ADAMANT_TESTS_E2E_SURVIVING_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/core/base/mutex.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {

// Where the server of now is; and how far the clients have come. Thread-safe.
class Meeting {
 public:
  struct Server {
    int64_t life = 0;  // from 1
    std::string address;
  };

  void Announce(const std::string& address) {
    core::MutexLock lock(&mutex_);
    server_ = {server_.life + 1, address};
    changed_.NotifyAll();
  }
  void Stop() {
    core::MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  // The server after the one of this life; nothing once there will be no other.
  std::optional<Server> AwaitAfter(int64_t life) {
    core::MutexLock lock(&mutex_);
    while (server_.life == life && !stopped_) changed_.Wait(&mutex_);
    if (server_.life == life) return std::nullopt;
    return server_;
  }
  bool stopped() const {
    core::MutexLock lock(&mutex_);
    return stopped_;
  }

  void CountReply() {
    core::MutexLock lock(&mutex_);
    ++replies_;
    changed_.NotifyAll();
  }
  int64_t replies() const {
    core::MutexLock lock(&mutex_);
    return replies_;
  }
  // Waits for so many; false if a client has given up.
  bool AwaitReplies(int64_t replies) {
    core::MutexLock lock(&mutex_);
    while (replies_ < replies && !stopped_) changed_.Wait(&mutex_);
    return !stopped_;
  }

  void CountRefusal() {
    core::MutexLock lock(&mutex_);
    ++refusals_;
    changed_.NotifyAll();
  }
  int64_t refusals() const {
    core::MutexLock lock(&mutex_);
    return refusals_;
  }
  // Waits for one more step that was answered or refused; false if a client has given up.
  bool AwaitAnswer() {
    core::MutexLock lock(&mutex_);
    const int64_t before = replies_ + refusals_;
    while (replies_ + refusals_ == before && !stopped_) changed_.Wait(&mutex_);
    return !stopped_;
  }

 private:
  mutable core::Mutex mutex_;
  core::CondVar changed_;
  Server server_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t replies_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t refusals_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What clients met, for the test's last line.
struct Tally {
  std::atomic<int64_t> steps{0};
  std::atomic<int64_t> broken{0};    // calls that a kill ended
  std::atomic<int64_t> resolved{0};  // of these: GetStepResult knew them
  std::atomic<int64_t> refused{0};   // steps that there was no room for
  std::atomic<int64_t> replayed{0};  // were answered as replayed when they were sent again
};

// The `number`-th of sets of many kinds, with so few steps in the journal that there is always a checkpoint under way.
v1::ParameterSetSpec SurvivingSpec(int number);

// One client with a set of its own, which it steps until there is no server any more; its model is what the set must
// be. Steps that there is no room for on the disk it asks for again, if `disk_may_be_full`.
class SurvivingClient {
 public:
  SurvivingClient(int number, uint64_t seed, bool disk_may_be_full, Meeting* meeting, Tally* tally)
      : spec_(SurvivingSpec(number)),
        model_(spec_),
        random_(seed + number),
        disk_may_be_full_(disk_may_be_full),
        meeting_(meeting),
        tally_(tally) {}

  const v1::ParameterSetSpec& spec() const { return spec_; }

  // Creates the set.
  void Begin(TestClient* client);
  void Run();
  // Everything that a client can see is what the steps made of it, each once.
  void CheckSet(TestClient* client);

 private:
  enum class End {
    kServer,   // it is gone
    kRefused,  // for want of room
    kOver,     // something is wrong, or all is over and no step under way
  };

  void Walk();
  End RunOn(TestClient* client);
  // Steps until a call ends.
  End RunOn(TestClient* client, StepStream* stream);
  // The next step: of all tensors, or of one.
  void Prepare();
  std::vector<int32_t> Brought() const;
  // The model's parameters of those tensors that have a size here.
  Values Parameters(const std::vector<int64_t>& sizes) const;
  // The step counts; false if its result is not the one that it must have.
  bool Take(const v1::StepResult& result);
  // A call has ended: the server's death, or a full disk, is the only reason that there may be.
  End Broken(const absl::Status& status);

  const v1::ParameterSetSpec spec_;
  SequentialModel model_;
  std::mt19937_64 random_;
  const bool disk_may_be_full_;
  Meeting* const meeting_;
  Tally* const tally_;
  uint64_t incarnation_ = 0;

  // The step that is under way.
  bool under_way_ = false;
  v1::StepHeader header_;
  Values gradient_;
  int32_t attempt_ = 0;
};

// Whether a call was refused for want of room on the disk, as the protocol says.
bool IsRefusedByDisk(const absl::Status& status);

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_SURVIVING_CLIENT_H_
