// The machine of a real server loses its power: a disk below ext4 and xfs keeps what it was told to flush, and of the
// rest any sectors. The server that is started on it afterwards has all that was answered before, and goes on.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "tests/e2e/child_program.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/test_client.h"
#include "tests/power/disk.h"
#include "tests/power/disk_file.h"
#include "tests/power/mounted_disk.h"
#include "tests/power/set_history.h"
#include "tests/store/temporary_folder.h"

namespace adamant::power {
namespace {

using ::testing::UnorderedElementsAre;

int64_t NumberFrom(const char* variable, int64_t otherwise) {
  const char* const given = std::getenv(variable);
  int64_t number = 0;
  return given != nullptr && absl::SimpleAtoi(given, &number) ? number : otherwise;
}

struct FileSystemKind {
  const char* type;
  int64_t disk_bytes;
  std::vector<std::string> make;  // of which the device's name is missing
};

std::ostream& operator<<(std::ostream& out, const FileSystemKind& kind) { return out << kind.type; }

// Sets of all sizes and promises: gradients in the catalog, in slots, and in more than one block.
std::vector<v1::ParameterSetSpec> Specs() {
  std::vector<v1::ParameterSetSpec> specs;
  const auto add = [&specs](absl::string_view name, int64_t head) -> v1::ParameterSetSpec& {
    v1::ParameterSetSpec spec = core::SmallSpec(name);
    if (head > 0) spec.mutable_tensors(0)->set_shape(0, head);
    return specs.emplace_back(std::move(spec));
  };
  add("small", 0).mutable_durability()->mutable_every_step();
  v1::ParameterSetSpec& momentum = add("momentum", 2500);
  for (v1::ParameterGroup& group : *momentum.mutable_groups()) group.mutable_sgd()->set_momentum(0.9);
  momentum.mutable_durability()->mutable_every_step()->set_journal_steps(5);
  add("blocks", 40000).mutable_durability()->mutable_every_step()->set_journal_steps(3);
  add("checkpoints", 0).mutable_durability()->mutable_checkpoints()->set_steps(7);
  v1::ParameterSetSpec& amsgrad = add("amsgrad", 3000);
  for (v1::ParameterGroup& group : *amsgrad.mutable_groups()) group.mutable_adam()->set_amsgrad(true);
  amsgrad.mutable_durability()->mutable_checkpoints()->set_steps(1000);
  return specs;
}

// Begins to write what is in any one file, as the system does after a while.
void WriteBackAny(const std::string& directory, std::mt19937_64* random) {
  std::vector<std::string> files;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_regular_file(error)) files.push_back(entry->path());
  }
  if (files.empty()) return;
  const int fd = open(files[(*random)() % files.size()].c_str(), O_RDONLY | O_CLOEXEC);
  // It may be gone by now.
  if (fd < 0) return;
  sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
  close(fd);
}

DiskEvent Written(int64_t offset, absl::string_view bytes) { return {.offset = offset, .bytes = std::string(bytes)}; }

// What was flushed has survived, and of each sector behind that nothing, or what was written, each in its order; all
// that can be kept is kept at one time or another.
TEST(CutPowerTest, AnySectorsSurviveThatWereNotFlushed) {
  const std::vector<DiskEvent> events = {Written(0, "aabb"), {}, Written(4, "cc"), Written(0, "ddee")};
  std::mt19937_64 random(1);
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const Outage outage = CutPower(events, 2, &random);
    EXPECT_EQ(outage.flushed, 2);
    std::string kept;
    for (const DiskEvent& event : outage.kept) absl::StrAppend(&kept, event.offset, event.bytes, " ");
    seen.insert(kept);
  }
  EXPECT_THAT(seen,
              UnorderedElementsAre("", "4cc ", "0dd ", "2ee ", "4cc 0dd ", "4cc 2ee ", "0dd 2ee ", "4cc 0dd 2ee "));
}

TEST(CutPowerTest, WhatWasFlushedSurvives) {
  const std::vector<DiskEvent> events = {Written(0, "aa"), Written(2, "bb"), {}};
  std::mt19937_64 random(1);
  const Outage outage = CutPower(events, 2, &random);
  EXPECT_EQ(outage.flushed, 3);
  EXPECT_TRUE(outage.kept.empty());
}

TEST(DiskTest, RestoreBringsBackWhatWasKept) {
  Disk disk(8192);
  disk.Write(4094, "kept");
  disk.Keep();
  disk.Write(4095, "gone");
  disk.Flush();
  EXPECT_EQ(disk.position(), 2);

  disk.Restore();

  std::string read(8, '-');
  disk.Read(4092, absl::MakeSpan(read));
  EXPECT_EQ(read, std::string("\0\0kept\0\0", 8));
}

class PowerTest : public testing::TestWithParam<FileSystemKind> {
 protected:
  void SetUp() override {
    const absl::Status can_mount = PrepareForMounts();
    if (!can_mount.ok()) GTEST_SKIP() << "skipped: no power cuts here: " << can_mount.message();
    if (access(GetParam().make.front().c_str(), X_OK) != 0) {
      GTEST_SKIP() << "skipped: no power cuts here: there is no " << GetParam().make.front();
    }
    for (const std::string& path : {disk_directory(), mounted_directory()}) std::filesystem::create_directory(path);
    absl::StatusOr<std::unique_ptr<DiskFile>> file = DiskFile::Mount(&disk_, disk_directory());
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    absl::StatusOr<std::unique_ptr<LoopDevice>> device = LoopDevice::Attach(file_->path());
    if (absl::IsFailedPrecondition(device.status())) {
      GTEST_SKIP() << "skipped: no power cuts here: " << device.status().message();
    }
    ASSERT_TRUE(device.ok()) << device.status();
    std::vector<std::string> make = GetParam().make;
    make.push_back((*device)->path());
    e2e::ChildProgram maker(make);
    ASSERT_EQ(maker.Wait(), 0) << maker.standard_error().AwaitEnd();
    device->reset();
    const absl::StatusOr<std::unique_ptr<MountedDisk>> mounted = Mount();
    if (absl::IsFailedPrecondition(mounted.status())) {
      GTEST_SKIP() << "skipped: no power cuts here: " << mounted.status().message();
    }
    ASSERT_TRUE(mounted.ok()) << mounted.status();
  }

  std::string disk_directory() const { return absl::StrCat(folder_.path(), "/disk"); }
  std::string mounted_directory() const { return absl::StrCat(folder_.path(), "/mounted"); }
  std::string data_directory() const { return absl::StrCat(mounted_directory(), "/data"); }

  absl::StatusOr<std::unique_ptr<MountedDisk>> Mount() {
    return MountedDisk::Mount(file_->path(), GetParam().type, mounted_directory());
  }
  std::unique_ptr<e2e::ServerProcess> StartServer() {
    return std::make_unique<e2e::ServerProcess>(
        std::vector<std::string>{absl::StrCat("--data_dir=", data_directory())});
  }

  // Has the catalog's log be so long that it is written over from its beginning: from then on, and until the server
  // ends, a commit does not make the file longer, which would have the file system flush what was written before.
  void FillCatalogLog(e2e::TestClient* client) const {
    v1::ParameterSetSpec wide = core::SmallSpec("wide");
    wide.mutable_durability()->mutable_every_step();
    while (wide.groups_size() < 1000) wide.add_groups()->set_name(absl::StrCat("group", wide.groups_size()));
    const absl::StatusOr<v1::CreateParameterSetResponse> created = client->Create(wide);
    ASSERT_TRUE(created.ok()) << created.status();
    v1::UpdateParameterGroupRequest change;
    change.set_set(wide.name());
    *change.mutable_group() = wide.groups(0);
    change.mutable_update_mask()->add_paths("learning_rate");
    const std::string path = absl::StrCat(data_directory(), "/catalog-wal");
    bool has_grown = true;
    for (int i = 0; has_grown; ++i) {
      ASSERT_LT(i, 1000) << "it grows and grows";
      const auto before = std::filesystem::file_size(path);
      change.mutable_group()->set_learning_rate(i);
      const auto changed = client->Call(&v1::OptimizerService::Stub::UpdateParameterGroup, change);
      ASSERT_TRUE(changed.ok()) << changed.status();
      has_grown = std::filesystem::file_size(path) > before;
    }
    ASSERT_TRUE(client->Delete(wide.name()).ok());
  }

  // Has each set's client make changes, all at the same time, until there have been so many.
  void Change(absl::Span<SetHistory> sets, int64_t changes, const std::string& address, const LoopDevice& device,
              std::mt19937_64* random) {
    std::atomic<int64_t> left = changes;
    std::vector<std::thread> clients;
    for (SetHistory& set : sets) {
      clients.emplace_back([&, seed = (*random)()] {
        std::mt19937_64 own_random(seed);
        e2e::TestClient client(address);
        while (--left >= 0) {
          const absl::Status status = set.Act(&client, disk_);
          if (!status.ok()) {
            ADD_FAILURE() << status;
            left = 0;
          }
          if (own_random() % 8 == 0) WriteBackAny(data_directory(), &own_random);
          if (own_random() % 16 == 0) device.WriteBack();
        }
      });
    }
    for (std::thread& client : clients) client.join();
  }

  // Two lives of a server whose sets are changed by a client each, with a clean stop between them. What the disk was
  // told meanwhile, which is as it was before then.
  std::vector<DiskEvent> Record(std::vector<SetHistory>* sets, int64_t changes, std::mt19937_64* random) {
    std::vector<DiskEvent> log;
    {
      absl::StatusOr<std::unique_ptr<MountedDisk>> mounted = Mount();
      EXPECT_TRUE(mounted.ok()) << mounted.status();
      if (!mounted.ok()) return {};
      std::unique_ptr<e2e::ServerProcess> server = StartServer();
      for (int life = 0; life < 2; ++life) {
        if (life > 0) {
          const int64_t begun = disk_.position();
          server->program().Signal(SIGTERM);
          EXPECT_EQ(server->program().Wait(), 0);
          for (SetHistory& set : *sets) set.NoteShutdown(begun, disk_.position());
          server = StartServer();
        }
        if (server->addresses().empty()) {
          ADD_FAILURE() << server->program().standard_error().AwaitEnd();
          return {};
        }
        if (life == 0) {
          e2e::TestClient client(server->address());
          FillCatalogLog(&client);
          if (HasFailure()) return {};
          disk_.Keep();
        }
        const auto change = [&](absl::Span<SetHistory> of, int64_t n) {
          Change(of, n, server->address(), (*mounted)->device(), random);
        };
        if (life == 0) {
          // Alone: nobody else's flush is of use to it.
          const auto share = changes / 2 / static_cast<int64_t>(sets->size());
          for (SetHistory& set : *sets) change(absl::MakeSpan(&set, 1), share);
        }
        change(absl::MakeSpan(*sets), changes / 4);
      }
      server->program().Signal(SIGKILL);
      server->program().Wait();
      log = disk_.TakeLog();
    }
    disk_.Restore();
    return log;
  }

  // Has the disk be as it was kept, and then as a power cut leaves it that has been told `events` since.
  std::string Cut(absl::Span<const DiskEvent> events, std::mt19937_64* random) {
    const Outage outage = CutPower(events, kSectorBytes, random);
    for (int64_t i = 0; i < outage.flushed; ++i) disk_.Write(events[i].offset, events[i].bytes);
    for (const DiskEvent& kept : outage.kept) disk_.Write(kept.offset, kept.bytes);
    return outage.description;
  }

  // Mounts what is on the disk, starts the server on it, has `check` look at it, and kills it.
  absl::Status StartOn(absl::FunctionRef<absl::Status(e2e::TestClient*)> check) {
    const absl::StatusOr<std::unique_ptr<MountedDisk>> mounted = Mount();
    if (!mounted.ok()) return mounted.status();
    disk_.Flush();
    mounted_at_ = disk_.position();
    const std::unique_ptr<e2e::ServerProcess> server = StartServer();
    absl::Status status = absl::InternalError("the server does not start");
    if (!server->addresses().empty()) {
      e2e::TestClient client(server->address());
      status = check(&client);
    }
    server->program().Signal(SIGKILL);
    server->program().Wait();
    if (status.ok()) return status;
    return absl::InternalError(
        absl::StrCat(status.message(), "\nthe server: ", server->program().standard_error().AwaitEnd()));
  }

  static constexpr int64_t kSectorBytes = 512;

  const store::TemporaryFolder folder_;
  Disk disk_{GetParam().disk_bytes};
  std::unique_ptr<DiskFile> file_;
  int64_t mounted_at_ = 0;  // the disk's position when StartOn had mounted it, and all was flushed
};

INSTANTIATE_TEST_SUITE_P(
    On, PowerTest,
    testing::Values(FileSystemKind{.type = "ext4",
                                   .disk_bytes = int64_t{96} << 20,
                                   .make = {"/sbin/mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E",
                                            "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}},
                    FileSystemKind{.type = "xfs",
                                   .disk_bytes = int64_t{96} << 20,
                                   .make = {"/sbin/mkfs.xfs", "--unsupported", "-q", "-K", "-l", "size=8m"}}),
    [](const auto& info) { return info.param.type; });

TEST_P(PowerTest, NothingIsLostThatWasAnswered) {
  const auto seed = static_cast<uint64_t>(NumberFrom("ADAMANT_TEST_SEED", std::random_device()()));
  const int64_t cuts = NumberFrom("ADAMANT_TEST_POWER_CUTS", ADAMANT_SANITIZED ? 5 : 20);
  std::cout << "ADAMANT_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  std::vector<SetHistory> sets;
  for (const v1::ParameterSetSpec& spec : Specs()) sets.emplace_back(spec, random());
  const std::vector<DiskEvent> log = Record(&sets, /*changes=*/1600, &random);
  ASSERT_FALSE(HasFailure());

  // Every other one is right before a flush that may have come too late for one of at least two writes.
  std::vector<int64_t> flushes;
  for (size_t i = 2; i < log.size(); ++i) {
    if (log[i].is_flush() && !log[i - 1].is_flush() && !log[i - 2].is_flush()) {
      flushes.push_back(static_cast<int64_t>(i));
    }
  }
  ASSERT_FALSE(flushes.empty());
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < cuts; ++i) {
    positions.push_back(
        static_cast<int64_t>(i % 2 == 0 ? flushes[random() % flushes.size()] : random() % (log.size() + 1)));
  }
  std::sort(positions.begin(), positions.end());

  const absl::Span<const DiskEvent> events = log;
  int64_t begin = 0;  // what is kept has all events before this one
  int64_t bad = 0;
  int64_t cut_again = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    const int64_t position = positions[i];
    // What was flushed will be so at every later cut.
    int64_t flushed = position;
    while (flushed > begin && !log[flushed - 1].is_flush()) --flushed;
    for (; begin < flushed; ++begin) disk_.Write(log[begin].offset, log[begin].bytes);
    disk_.Keep();
    std::string what = Cut(events.subspan(begin, position - begin), &random);
    absl::Status status;
    // Every fifth time the power goes away again while the server starts.
    if (i % 5 == 4) {
      // What has survived is there for good. How the file system recovers from a cut while it is mounted is its own
      // affair: ext4 on 512-byte sectors does not where one has torn its superblock.
      disk_.Flush();
      int64_t in_start = 0;
      mounted_at_ = 0;
      status = StartOn([&](e2e::TestClient*) {
        in_start = disk_.position() - mounted_at_;
        return absl::OkStatus();
      });
      const std::vector<DiskEvent> start = disk_.TakeLog();
      disk_.Restore();
      const auto again = static_cast<int64_t>(random() % (in_start + 1));
      absl::StrAppend(&what, "; again at ", again, " of ", in_start, ", ",
                      Cut(absl::MakeConstSpan(start).first(mounted_at_ + again), &random));
      ++cut_again;
    }
    if (status.ok()) {
      status = StartOn([&](e2e::TestClient* client) {
        for (SetHistory& set : sets) {
          if (absl::Status wrong = set.CheckAfterCut(client, position); !wrong.ok()) return wrong;
        }
        return absl::OkStatus();
      });
    }
    if (!status.ok()) {
      ++bad;
      ADD_FAILURE() << "cut " << i << " at " << position << " of " << log.size() << ", " << what << ": " << status;
    }
    disk_.Restore();
  }
  int64_t changes = 0;
  for (const SetHistory& set : sets) changes += set.changes();
  std::cout << GetParam().type << ": " << cuts << " power cuts, " << cut_again
            << " of them with another one during the start, in " << log.size() << " writes and flushes by " << changes
            << " changes: " << bad << " bad" << std::endl;
}

}  // namespace
}  // namespace adamant::power
