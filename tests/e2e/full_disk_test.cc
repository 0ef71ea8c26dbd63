// The disk that the data directory is on becomes full again and again, while clients go on. What there is no room for
// is refused, and changes nothing; all else goes on, the steps, too, once there is room. No step is lost that was
// answered, none counts twice, and the bits are those of a life on a disk without an end.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/e2e/durable_server.h"
#include "tests/e2e/surviving_client.h"
#include "tests/power/mounted_disk.h"
#include "tests/store/temporary_folder.h"

namespace adamant::e2e {
namespace {

constexpr int64_t kDiskBytes = int64_t{128} << 20;

// How often the disk becomes full: ADAMANT_TEST_FULL_DISKS where it is set. In every fourth of these the server is
// killed, and started on the full disk.
int64_t FullDisks() {
  const char* const given = std::getenv("ADAMANT_TEST_FULL_DISKS");
  int64_t count = 0;
  return given != nullptr && absl::SimpleAtoi(given, &count) ? count : ADAMANT_SANITIZED ? 8 : 40;
}

// A file that takes what room there is, and gives it back.
class Filler {
 public:
  explicit Filler(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    EXPECT_GE(fd_, 0) << path;
  }
  ~Filler() { close(fd_); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

  void Fill() {
    for (off_t step = 16 << 20; step >= 4096;) {
      if (fallocate(fd_, 0, size_, step) == 0) {
        size_ += step;
      } else {
        step /= 2;
      }
    }
  }
  void Empty() {
    EXPECT_EQ(ftruncate(fd_, 0), 0);
    // Only then can others have it.
    EXPECT_EQ(fsync(fd_), 0);
    size_ = 0;
  }

 private:
  const int fd_;
  off_t size_ = 0;
};

// Changes a set of its own, in all ways but by steps, and makes others that it deletes again. What is refused has
// changed nothing.
class ChangingClient {
 public:
  ChangingClient(uint64_t seed, Meeting* meeting) : random_(seed), meeting_(meeting), model_(Spec("changing")) {}

  void Begin(TestClient* client) {
    const absl::StatusOr<v1::CreateParameterSetResponse> created = client->Create(model_.spec());
    ASSERT_TRUE(created.ok()) << created.status();
  }

  void Run() {
    std::optional<Meeting::Server> server = meeting_->AwaitAfter(0);
    while (server.has_value() && !testing::Test::HasFailure()) {
      TestClient client(server->address);
      awaits_full_write_ = false;  // what it was comes back
      while (!meeting_->stopped() && Change(&client)) {
      }
      server = meeting_->AwaitAfter(server->life);
    }
    if (testing::Test::HasFailure()) meeting_->Stop();
  }

  void CheckSet(TestClient* client) {
    const absl::StatusOr<SetState> state = client->ReadState(model_.spec());
    ASSERT_TRUE(state.ok()) << state.status();
    const bool is_unsure = unsure_ != nullptr && state->arrays == unsure_->arrays() &&
                           state->description.groups(0).learning_rate() == unsure_->spec().groups(0).learning_rate();
    if (is_unsure) model_ = *unsure_;
    EXPECT_TRUE(state->arrays == model_.arrays());
    EXPECT_EQ(state->description.groups(0).learning_rate(), model_.spec().groups(0).learning_rate());
  }

  int64_t changed() const { return changed_; }
  int64_t refused() const { return refused_; }

 private:
  static v1::ParameterSetSpec Spec(const std::string& name) {
    v1::ParameterSetSpec spec = SmallSpec(name);
    spec.mutable_tensors(0)->set_shape(0, 4096);
    spec.mutable_durability()->mutable_every_step()->set_journal_steps(3);
    return spec;
  }

  // Makes one change. False if the server is gone, or something is wrong.
  bool Change(TestClient* client) {
    // Of the one that was under way when the server was killed nobody knows.
    if (unsure_ != nullptr) {
      CheckSet(client);
      unsure_.reset();
      if (testing::Test::HasFailure()) return false;
    }
    SequentialModel next = model_;
    absl::Status status;
    bool is_full = false;
    switch (awaits_full_write_ ? 1 : random_() % 5) {
      case 0: {
        v1::UpdateParameterGroupRequest request;
        request.set_set(model_.spec().name());
        request.mutable_group()->set_name(model_.spec().groups(0).name());
        request.mutable_group()->set_learning_rate(static_cast<double>(1 + random_() % 1000) / 1024);
        request.mutable_update_mask()->add_paths("learning_rate");
        next.mutable_spec()->mutable_groups(0)->set_learning_rate(request.group().learning_rate());
        status = client->Call(&v1::OptimizerService::Stub::UpdateParameterGroup, request).status();
        break;
      }
      case 1:
      case 2: {
        is_full = awaits_full_write_ || random_() % 2 == 0;
        Arrays* const arrays = next.mutable_arrays();
        arrays->parameters = Gradient(next.parameter_count(), random_());
        v1::WriteHeader header = core::ParametersHeader();
        if (is_full) {
          header = core::FullHeader(static_cast<int64_t>(random_() % 100));
          arrays->step = header.step();
        }
        status = client->Write(next.spec(), header, *arrays).status();
        break;
      }
      case 3: {
        v1::CheckpointRequest request;
        request.set_set(model_.spec().name());
        status = client->Call(&v1::OptimizerService::Stub::Checkpoint, request).status();
        break;
      }
      default: {
        if (brief_.empty()) {
          const std::string name = absl::StrCat("brief-", ++briefs_);
          status = client->Create(Spec(name)).status();
          if (!IsRefusedByDisk(status)) brief_ = name;
        } else {
          v1::DeleteParameterSetRequest request;
          request.set_name(brief_);
          status = client->Call(&v1::OptimizerService::Stub::DeleteParameterSet, request).status();
          // One whose creation, or deletion, the server's end has broken off.
          if (absl::IsNotFound(status)) status = absl::OkStatus();
          if (status.ok()) brief_.clear();
        }
        break;
      }
    }
    if (status.ok()) {
      ++changed_;
      if (is_full) awaits_full_write_ = false;
      model_ = next;
      return true;
    }
    if (IsRefusedByDisk(status)) {
      ++refused_;
      // Its moments came in the place of those that there were.
      if (is_full) awaits_full_write_ = true;
      return true;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(ReasonOf(status), v1::ERROR_REASON_UNSPECIFIED) << status;
    unsure_ = std::make_unique<SequentialModel>(next);
    return false;
  }

  std::mt19937_64 random_;
  Meeting* const meeting_;
  SequentialModel model_;
  std::unique_ptr<SequentialModel> unsure_;  // what the set may be, too
  bool awaits_full_write_ = false;
  std::string brief_;  // a set that may be there
  int briefs_ = 0;
  std::atomic<int64_t> changed_{0};
  std::atomic<int64_t> refused_{0};
};

TEST(FullDiskTest, NoStepIsLostOrDoubledAndAllGoOn) {
  const char* const given = std::getenv("ADAMANT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  if (absl::Status status = power::PrepareForMounts(); !status.ok()) {
    GTEST_SKIP() << "skipped: no full disk here: " << status.message();
  }
  const store::TemporaryFolder folder;
  const std::string image = folder.path() + "/image";
  const std::string mounted = folder.path() + "/disk";
  ASSERT_TRUE(std::filesystem::create_directory(mounted));
  const int fd = open(image.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(ftruncate(fd, kDiskBytes), 0);
  close(fd);
  if (std::system(absl::StrCat("mkfs.ext4 -q -F -m 0 ", image).c_str()) != 0) {
    GTEST_SKIP() << "skipped: no full disk here: mkfs.ext4 does not work";
  }
  const absl::StatusOr<std::unique_ptr<power::MountedDisk>> disk = power::MountedDisk::Mount(image, "ext4", mounted);
  if (absl::IsFailedPrecondition(disk.status())) {
    GTEST_SKIP() << "skipped: no full disk here: " << disk.status().message();
  }
  ASSERT_TRUE(disk.ok()) << disk.status();

  Meeting meeting;
  Tally tally;
  DurableServer server({}, mounted);
  std::vector<std::unique_ptr<SurvivingClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<SurvivingClient>(i, seed, /*disk_may_be_full=*/true, &meeting, &tally));
    clients.back()->Begin(&server.client());
  }
  ChangingClient changing(seed + 100, &meeting);
  changing.Begin(&server.client());
  std::vector<std::thread> threads;
  for (const std::unique_ptr<SurvivingClient>& client : clients) threads.emplace_back([&client] { client->Run(); });
  threads.emplace_back([&changing] { changing.Run(); });
  meeting.Announce(server.process().address());

  Filler filler(mounted + "/filler");
  const int64_t full_disks = FullDisks();
  int64_t kills = 0;
  for (int64_t i = 0; i < full_disks; ++i) {
    if (!meeting.AwaitReplies(meeting.replies() + 1 + static_cast<int64_t>(random() % 40))) break;
    // What others give back meanwhile is taken, too: otherwise steps might go on with it, and none be refused.
    for (const int64_t refusals = meeting.refusals(); meeting.refusals() < refusals + 8 && !meeting.stopped();) {
      filler.Fill();
      if (!meeting.AwaitAnswer()) break;
    }
    for (const std::unique_ptr<SurvivingClient>& client : clients) {
      EXPECT_TRUE(server.client().ReadArrays(client->spec()).ok()) << client->spec().name();
    }
    if (i % 4 == 3) {
      ++kills;
      server.End(SIGKILL);
      server.Start();
      meeting.Announce(server.process().address());
    }
    filler.Empty();
  }
  meeting.Stop();
  for (std::thread& thread : threads) thread.join();
  server.KillAndStart();

  for (const std::unique_ptr<SurvivingClient>& client : clients) client->CheckSet(&server.client());
  changing.CheckSet(&server.client());
  std::cout << "full " << full_disks << " times, killed " << kills << " of them; " << tally.steps << " steps, "
            << tally.refused << " refused; " << changing.changed() << " other changes, " << changing.refused()
            << " refused" << std::endl;
}

}  // namespace
}  // namespace adamant::e2e
