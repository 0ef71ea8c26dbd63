// A server whose memory is watched.
#ifndef ADAMANT_TESTS_E2E_BOUNDED_SERVER_H_
#define ADAMANT_TESTS_E2E_BOUNDED_SERVER_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/waiting_room.h"
#include "tests/e2e/half_sent_calls.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"

namespace adamant::e2e {

inline constexpr int64_t kMiB = int64_t{1} << 20;
// For what is counted nowhere: connections, gRPC's own buffers, the allocator's fragments.
inline constexpr int64_t kSlackBytes = 128 * kMiB;

// A sanitizer's shadow memory and quarantine would be measured, not the server.
inline constexpr bool kResidentMemoryIsTheServers = !ADAMANT_SANITIZED;
// It makes the server slow as well: a twentieth of the calls has it take the same paths.
inline constexpr int kFewer = ADAMANT_SANITIZED ? 20 : 1;

// A server process with a small set and a large one. Thread-compatible.
class BoundedServer {
 public:
  static constexpr int64_t kStateBytes = 256 * kMiB;
  static constexpr int64_t kInflightBytes = 64 * kMiB;
  static constexpr int64_t kReadBytes = 64 * kMiB;

  explicit BoundedServer(int max_streams, std::vector<std::string> flags = {})
      : process_(Flags(max_streams, std::move(flags))), client_(process_.address()) {
    idle_bytes_ = process_.program().ResidentBytes();
    for (const v1::ParameterSetSpec& spec : {SmallSpec(), LargeSpec()}) {
      const auto created = client_.Create(spec);
      EXPECT_TRUE(created.ok()) << created.status();
    }
    used_ = client_.UsedBudgets();
  }

  // Whether it has never held more than it may.
  void ExpectBounded() {
    // What the sets take, and what the other budgets may.
    int64_t budgets = 0;
    const v1::GetServerInfoResponse info = Info();
    for (const v1::MemoryBudget& budget : info.budgets()) {
      budgets += budget.name() == "state" ? budget.used_bytes() : budget.capacity_bytes();
    }
    const int64_t peak = process_.program().PeakResidentBytes();
    std::cout << "MiB in RAM: idle " << idle_bytes_ / kMiB << ", peak " << peak / kMiB << ", allowed "
              << (idle_bytes_ + budgets + kSlackBytes) / kMiB << "\n";
    if (kResidentMemoryIsTheServers) {
      EXPECT_LE(peak, idle_bytes_ + budgets + kSlackBytes);
    }
  }

  // Whether it has never held as much as `bytes` more than when it was idle.
  void ExpectRoom(int64_t bytes) {
    const int64_t peak = process_.program().PeakResidentBytes();
    std::cout << "MiB in RAM: idle " << idle_bytes_ / kMiB << ", peak " << peak / kMiB << "\n";
    if (kResidentMemoryIsTheServers) {
      EXPECT_LT(peak, idle_bytes_ + bytes);
    }
  }

  // Whether everything has come back, and a step succeeds.
  void ExpectAsBefore() {
    EXPECT_TRUE(client_.ReturnsTo(used_));
    for (const v1::ParameterSetSpec& spec : {SmallSpec(), LargeSpec()}) {
      const absl::StatusOr<StepReply> reply = Step(spec);
      EXPECT_TRUE(reply.ok()) << reply.status();
    }
  }

  absl::StatusOr<StepReply> Step(const v1::ParameterSetSpec& spec) {
    return client_.Step(spec, StepHeader(spec.name()), Gradient(ParameterCount(spec), 1));
  }

  v1::GetServerInfoResponse Info() {
    return *client_.Call(&v1::OptimizerService::Stub::GetServerInfo, v1::GetServerInfoRequest());
  }

  // Those that move tensors or nothing but a few bytes; health checks wait by themselves.
  int64_t WaitingCalls() { return client_.UsedBudgets()["waiting"] / rpc::kWaitingCallBytes; }

  // Whether all places are taken by `calls` sooner or later, and the others wait.
  bool AllWaitBut(int places, HalfSentCalls* calls) {
    return TestClient::Until([&] {
      calls->RunUntilStopped();
      return WaitingCalls() == calls->open() - places;
    });
  }

  ChildProgram& program() { return process_.program(); }
  const std::string& address() const { return process_.address(); }
  TestClient& client() { return client_; }

 private:
  static std::vector<std::string> Flags(int max_streams, std::vector<std::string> flags) {
    std::vector<std::string> all = {absl::StrCat("--state_bytes=", kStateBytes),
                                    absl::StrCat("--inflight_bytes=", kInflightBytes),
                                    absl::StrCat("--read_bytes=", kReadBytes),
                                    absl::StrCat("--max_streams=", max_streams), "--admission_wait=100ms",
                                    // So that none of those who are silent gives way to those who wait.
                                    "--patience=1h"};
    // Of a flag that comes twice the last counts.
    all.insert(all.end(), flags.begin(), flags.end());
    return all;
  }

  ServerProcess process_;
  TestClient client_;
  int64_t idle_bytes_;
  std::map<std::string, int64_t> used_;
};

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_BOUNDED_SERVER_H_
