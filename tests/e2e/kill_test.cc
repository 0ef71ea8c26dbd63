// The server is killed again and again, at any point of its steps, checkpoints and restarts, while clients go on as
// docs/clients.md says. No step is lost that was answered, none counts twice, and the bits are those of a life without
// an end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/e2e/durable_server.h"
#include "tests/e2e/surviving_client.h"

namespace adamant::e2e {
namespace {

// How often the server is killed while it serves: ADAMANT_TEST_KILLS where it is set. After every third of these it is
// killed while it starts, too.
int64_t Kills() {
  const char* const given = std::getenv("ADAMANT_TEST_KILLS");
  int64_t kills = 0;
  return given != nullptr && absl::SimpleAtoi(given, &kills) ? kills : ADAMANT_SANITIZED ? 10 : 50;
}

TEST(KillTest, NoStepIsLostOrDoubled) {
  const char* const given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  Meeting meeting;
  Tally tally;
  DurableServer server;
  std::vector<std::unique_ptr<SurvivingClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<SurvivingClient>(i, seed, /*disk_may_be_full=*/false, &meeting, &tally));
    clients.back()->Begin(&server.client());
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<SurvivingClient>& client : clients) threads.emplace_back([&client] { client->Run(); });
  meeting.Announce(server.process().address());

  absl::Duration start_time;
  const int64_t kills = Kills();
  for (int64_t i = 0; i < kills; ++i) {
    if (!meeting.AwaitReplies(meeting.replies() + 1 + static_cast<int64_t>(random() % 40))) break;
    // Waits for nothing: so that it is not always right behind a reply.
    absl::SleepFor(absl::Microseconds(random() % 5000));
    server.End(SIGKILL);
    if (i % 3 == 2) server.StartAndKill(start_time * (static_cast<double>(random() % 1000) / 1000));
    const absl::Time begin = absl::Now();
    server.Start();
    start_time = absl::Now() - begin;
    meeting.Announce(server.process().address());
  }
  meeting.Stop();
  for (std::thread& thread : threads) thread.join();

  for (const std::unique_ptr<SurvivingClient>& client : clients) client->CheckSet(&server.client());
  std::cout << tally.steps << " steps; " << tally.broken << " calls broken off, " << tally.resolved
            << " of them known to GetStepResult, " << tally.replayed << " replayed" << std::endl;
}

}  // namespace
}  // namespace adamant::e2e
