// That what waits together is committed together, and fails alone.
#include "server/store/commit_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "proto/error/error.h"
#include "tests/core/gate.h"
#include "tests/core/set_matchers.h"
#include "tests/store/every_file_system.h"
#include "tests/store/sqlite_vfs.h"
#include "tests/store/store_matchers.h"

namespace adamant::store {
namespace {

using core::Gate;
using core::IsOk;
using testing::Each;
using testing::ElementsAre;
using Fault = SimulatedFileSystem::Fault;

absl::Status AddSet(Catalog* catalog, const std::string& device) {
  StoredSet set;
  set.set_device(device);
  return catalog->AddSet(set).status();
}

class CommitThreadTest : public testing::Test {
 protected:
  CommitThreadTest() { thread_ = std::make_unique<CommitThread>(Open(), &executor_); }

  std::unique_ptr<Catalog> Open() { return *Catalog::Open(&disk_, "/", false, vfs_.name().c_str()); }

  void Commit(CommitThread::Change change) {
    size_t number;
    {
      core::MutexLock lock(&mutex_);
      number = told_.size();
      told_.emplace_back();
    }
    thread_->Commit(std::move(change), [this, number](absl::Status status) {
      core::MutexLock lock(&mutex_);
      told_[number] = std::move(status);
      told_on_.push_back(std::this_thread::get_id());
      if (++told_count_ == told_.size()) all_told_.NotifyAll();
    });
  }

  // A change that keeps the thread until the gate is open, so that later ones wait together. Begun when this returns.
  void CommitBehind(Gate* gate) {
    auto begun = std::make_shared<Gate>();
    Commit([gate, begun](Catalog*) {
      begun->Open();
      gate->Pass();
      return absl::OkStatus();
    });
    begun->Pass();
  }

  // What all of them were told, in the order of the calls.
  std::vector<absl::Status> Told() {
    core::MutexLock lock(&mutex_);
    while (told_count_ < told_.size()) all_told_.Wait(&mutex_);
    return told_;
  }

  std::vector<std::string> Devices() {
    thread_.reset();
    std::vector<std::string> devices;
    EXPECT_THAT(Open()->ForEachSet([&](int64_t, absl::StatusOr<StoredSet> set) {
      devices.push_back(set->device());
      return absl::OkStatus();
    }),
                IsOk());
    return devices;
  }

  SimulatedFileSystem disk_;
  SqliteVfs vfs_{&disk_};
  core::Mutex mutex_;
  core::CondVar all_told_;
  std::vector<absl::Status> told_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread::id> told_on_ ABSL_GUARDED_BY(mutex_);
  size_t told_count_ ABSL_GUARDED_BY(mutex_) = 0;
  core::ComputePool executor_{2};
  std::unique_ptr<CommitThread> thread_;
};

TEST_F(CommitThreadTest, WhatIsToldIsThere) {
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  EXPECT_THAT(Told(), ElementsAre(IsOk()));
  // Neither the catalog's end nor its log's is needed for that.
  const std::unique_ptr<SimulatedFileSystem> cut = disk_.PowerCut(0);
  const SqliteVfs vfs(cut.get());
  int sets = 0;
  const std::unique_ptr<Catalog> catalog = *Catalog::Open(cut.get(), "/", false, vfs.name().c_str());
  EXPECT_THAT(catalog->ForEachSet([&](int64_t, const absl::StatusOr<StoredSet>&) {
    ++sets;
    return absl::OkStatus();
  }),
              IsOk());
  EXPECT_EQ(sets, 1);
}

TEST_F(CommitThreadTest, WhatWaitsTogetherIsOneCommitInOrder) {
  // As many calls as one commit takes, whatever is in it.
  Commit([](Catalog* catalog) { return AddSet(catalog, "first"); });
  Told();
  const int64_t before_one = disk_.calls();
  Commit([](Catalog* catalog) { return AddSet(catalog, "second"); });
  Told();
  const int64_t calls_of_one = disk_.calls() - before_one;

  Gate gate;
  CommitBehind(&gate);
  for (int i = 0; i < 10; ++i) {
    Commit([i](Catalog* catalog) { return AddSet(catalog, std::string(1, static_cast<char>('0' + i))); });
  }
  const int64_t before_ten = disk_.calls();
  gate.Open();
  EXPECT_THAT(Told(), Each(IsOk()));
  // The one that waited at the gate, and all the others.
  EXPECT_LE(disk_.calls() - before_ten, 2 * calls_of_one);
  EXPECT_THAT(Devices(), ElementsAre("first", "second", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"));
}

TEST_F(CommitThreadTest, AChangeThatFailsFailsAlone) {
  Gate gate;
  CommitBehind(&gate);
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  Commit([](Catalog* catalog) {
    EXPECT_THAT(AddSet(catalog, "not there"), IsOk());
    return absl::AbortedError("changed its mind");
  });
  Commit([](Catalog* catalog) { return AddSet(catalog, "b"); });
  gate.Open();
  const std::vector<absl::Status> told = Told();
  EXPECT_THAT(told[1], IsOk());
  EXPECT_EQ(told[2].code(), absl::StatusCode::kAborted);
  EXPECT_THAT(told[3], IsOk());
  EXPECT_THAT(thread_->CheckWorking(), IsOk());
  EXPECT_THAT(Devices(), ElementsAre("a", "b"));
}

TEST_F(CommitThreadTest, WhatHasNoRoomFailsAloneAndItGoesOn) {
  disk_.SetCapacity(400'000);
  Gate gate;
  CommitBehind(&gate);
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  Commit([](Catalog* catalog) { return AddSet(catalog, std::string(1'000'000, 'x')); });
  Commit([](Catalog* catalog) { return AddSet(catalog, "b"); });
  gate.Open();
  const std::vector<absl::Status> told = Told();
  EXPECT_THAT(told[1], IsOk());
  EXPECT_THAT(told[2], IsDiskExhausted());
  EXPECT_THAT(told[3], IsOk());
  EXPECT_THAT(thread_->CheckWorking(), IsOk());
  EXPECT_THAT(Devices(), ElementsAre("a", "b"));
}

TEST_F(CommitThreadTest, WhatIsTooLargeForARowFailsAloneAndItGoesOn) {
  Gate gate;
  CommitBehind(&gate);
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  // SQLite would take none of 1e9 bytes, and protobuf makes none of 2 GiB.
  const auto large = std::make_shared<StoredRecord>();
  large->mutable_committed()->mutable_gradient()->set_here(std::string(999'999'990, 'x'));
  Commit([large](Catalog* catalog) {
    EXPECT_THAT(AddSet(catalog, "not there"), IsOk());
    return catalog->AddRecord(2, 1, *large);
  });
  Commit([](Catalog* catalog) { return AddSet(catalog, "b"); });
  gate.Open();
  const std::vector<absl::Status> told = Told();
  EXPECT_THAT(told[1], IsOk());
  EXPECT_EQ(told[2].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorDetail(told[2]).reason(), v1::ERROR_REASON_TOO_LARGE);
  EXPECT_THAT(told[3], IsOk());
  EXPECT_THAT(thread_->CheckWorking(), IsOk());
  EXPECT_THAT(Devices(), ElementsAre("a", "b"));
}

TEST_F(CommitThreadTest, RoomIsMadeForWhatIsTriedAgainAlone) {
  thread_.reset();
  thread_ = std::make_unique<CommitThread>(Open(), &executor_, [this] {
    disk_.SetCapacity(10'000'000);
    return true;
  });
  disk_.SetCapacity(400'000);
  Gate gate;
  CommitBehind(&gate);
  const std::string large(1'000'000, 'x');
  Commit([large](Catalog* catalog) { return AddSet(catalog, large); });
  Commit([](Catalog*) { return absl::AbortedError("changed its mind"); });
  gate.Open();
  EXPECT_THAT(Told()[1], IsOk());
  EXPECT_THAT(Devices(), ElementsAre(large));
}

TEST_F(CommitThreadTest, AfterASyncThatFailedNothingIsCommitted) {
  // The call is the commit's sync: those before it are writes.
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  Told();
  const int64_t before = disk_.calls();
  Commit([](Catalog* catalog) { return AddSet(catalog, "b"); });
  Told();
  // The last call is the fence's.
  const int64_t sync = disk_.calls() + (disk_.calls() - before) - 1;
  disk_.FailCall(sync, Fault::kIoError);
  Commit([](Catalog* catalog) { return AddSet(catalog, "c"); });
  EXPECT_THAT(Told().back(), IsStoreFailed());
  EXPECT_THAT(thread_->CheckWorking(), IsStoreFailed());
  bool called = false;
  const int64_t calls = disk_.calls();
  Commit([&](Catalog*) {
    called = true;
    return absl::OkStatus();
  });
  EXPECT_THAT(Told().back(), IsStoreFailed());
  EXPECT_FALSE(called);
  EXPECT_EQ(disk_.calls(), calls) << "nothing is tried again";
}

// The disk fails while a change is being made, before its commit.
TEST_F(CommitThreadTest, AfterACatalogThatCannotBeReadNothingIsCommitted) {
  Commit([](Catalog*) { return absl::InternalError("disk I/O error"); });
  EXPECT_THAT(Told().back(), IsStoreFailed());
  EXPECT_THAT(thread_->CheckWorking(), IsStoreFailed());
  Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  EXPECT_THAT(Told().back(), IsStoreFailed());
}

TEST_F(CommitThreadTest, NobodyIsToldOnTheCommitThread) {
  std::thread::id commit_thread;
  Commit([&](Catalog*) {
    commit_thread = std::this_thread::get_id();
    return absl::OkStatus();
  });
  Commit([](Catalog*) { return absl::AbortedError("no"); });
  Told();
  EXPECT_NE(commit_thread, std::this_thread::get_id());
  core::MutexLock lock(&mutex_);
  EXPECT_THAT(told_on_, Each(testing::Ne(commit_thread)));
}

TEST_F(CommitThreadTest, ItsEndCommitsWhatItWasGiven) {
  Gate gate;
  CommitBehind(&gate);
  for (int i = 0; i < 5; ++i) Commit([](Catalog* catalog) { return AddSet(catalog, "a"); });
  std::thread opener([&] { gate.Open(); });
  EXPECT_EQ(Devices().size(), 5);
  opener.join();
  EXPECT_THAT(Told(), Each(IsOk()));
}

}  // namespace
}  // namespace adamant::store
