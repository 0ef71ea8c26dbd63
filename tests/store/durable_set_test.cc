#include "server/store/durable_set.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/base/notification.h"
#include "server/core/registry.h"
#include "server/store/store.h"
#include "tests/core/late_backend.h"
#include "tests/core/manual_clock.h"
#include "tests/core/set_changes.h"
#include "tests/core/set_fixture.h"
#include "tests/core/set_matchers.h"
#include "tests/store/forwarding_set_journal.h"
#include "tests/store/simulated_file_system.h"
#include "tests/store/sqlite_vfs.h"

namespace adamant::store {
namespace {

using core::IsOk;
using core::Resources;

// Calls `between` once a base has been committed, and before the set hears of it, if there is one.
class InterruptedSetJournal final : public ForwardingSetJournal {
 public:
  InterruptedSetJournal(std::unique_ptr<core::SetJournal> journal, const std::function<void()>* between)
      : ForwardingSetJournal(std::move(journal)), between_(between) {}

  void CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                  absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                  core::Then<absl::Status> done) override {
    ForwardingSetJournal::CommitBase(record, parameters, slots, set,
                                     [this, done = std::move(done)](absl::Status status) mutable {
                                       // It may give itself up.
                                       if (const std::function<void()> between = *between_; between) between();
                                       done(std::move(status));
                                     });
  }

 private:
  const std::function<void()>* const between_;
};

// A store's journal, which shows the one of the set that was made last.
class SeenJournal final : public core::Journal {
 public:
  explicit SeenJournal(core::Journal* journal) : journal_(journal) {}

  core::SetJournal* last() const { return last_; }

  absl::StatusOr<v1::Durability> Resolve(const v1::Durability* durability, absl::string_view field) const override {
    return journal_->Resolve(durability, field);
  }
  absl::StatusOr<std::unique_ptr<core::SetJournal>> CreateSet(const v1::ParameterSetSpec& spec,
                                                              std::shared_ptr<const core::Schema> schema,
                                                              const v1::ParameterSet& set) override {
    absl::StatusOr<std::unique_ptr<core::SetJournal>> made = journal_->CreateSet(spec, std::move(schema), set);
    if (!made.ok()) return made.status();
    auto interrupted = std::make_unique<InterruptedSetJournal>(*std::move(made), &between_);
    last_ = interrupted.get();
    return interrupted;
  }
  // What is called between a base and its being published.
  std::function<void()>& between() { return between_; }
  absl::Status CheckWorking() const override { return journal_->CheckWorking(); }

 private:
  core::Journal* const journal_;
  std::function<void()> between_;
  core::SetJournal* last_ = nullptr;
};

class DurableSetTest : public ::testing::Test {
 protected:
  explicit DurableSetTest(core::Backend* backend = nullptr) : server_({.backend = backend}) { Start(); }
  ~DurableSetTest() override { Stop(); }

  void Start() {
    StoreOptions options;
    options.directory = "/data";
    options.reserve_bytes = 64 << 10;
    options.sqlite_vfs = vfs_.name().c_str();
    options.clock = &clock_;
    options.checkpoint_bytes_per_second = checkpoint_rate_;
    options.warn = [this](absl::string_view line) {
      ++warnings_;
      EXPECT_FALSE(warnings_are_failures_) << line;
    };
    store_ = *Store::Open(&disk_, options);
    journal_ = std::make_unique<SeenJournal>(store_.get());
    Resources resources = server_.resources();
    resources.journal = journal_.get();
    registry_ = std::make_unique<core::Registry>(std::vector<Resources>{resources});
    ASSERT_THAT(store_->Restore(registry_.get()), IsOk());
    ASSERT_THAT(store_->BeginChanges(), IsOk());
  }
  void Stop() {
    if (store_ == nullptr) return;
    registry_.reset();
    server_.AwaitUnused();
    store_.reset();
  }

  static v1::Durability EveryStep() {
    v1::Durability durability;
    durability.mutable_every_step()->set_journal_steps(8);
    return durability;
  }
  std::shared_ptr<core::ParameterSet> Create(const v1::Durability& durability = EveryStep(),
                                             const v1::ParameterSetSpec& spec = core::SmallSpec("set")) {
    v1::CreateParameterSetRequest request;
    *request.mutable_spec() = spec;
    *request.mutable_spec()->mutable_durability() = durability;
    EXPECT_THAT(registry_->Create(request).status(), IsOk());
    return *registry_->Find("set");
  }

  template <typename Begin>
  static absl::Status Await(Begin begin) {
    absl::Status status;
    core::Notification done;
    begin([&](const absl::Status& made) {
      status = Unshared(made);
      done.Notify();
    });
    done.WaitForNotification();
    return status;
  }

  void Restart() {
    Stop();
    Start();
  }

  // Leaves so many bytes on the disk, and later as many as before.
  void LeaveBytes(int64_t bytes) {
    disk_.SetCapacity(kCapacity);
    disk_.SetCapacity(kCapacity - *disk_.FreeBytes("/") + bytes);
  }
  void LeaveRoom() { disk_.SetCapacity(kCapacity); }

  static constexpr int64_t kCapacity = int64_t{1} << 30;
  core::ManualClock clock_;
  int64_t checkpoint_rate_ = 0;  // from the next start on
  bool warnings_are_failures_ = true;
  std::atomic<int> warnings_ = 0;
  SimulatedFileSystem disk_;
  const SqliteVfs vfs_{&disk_};
  core::TestServer server_;  // on the processor, unless there is a device
  std::unique_ptr<Store> store_;
  std::unique_ptr<SeenJournal> journal_;
  std::unique_ptr<core::Registry> registry_;
};

// What lies between the two is put down no more: from the older one the set would come back without it.
TEST_F(DurableSetTest, ACheckpointOfAnEarlierStateThanTheBaseIsRefused) {
  std::shared_ptr<core::ParameterSet> set = Create();
  core::SequentialModel model(core::SmallSpec("set"));
  const auto step = [&](uint64_t seed) {
    const core::Values gradient = core::Gradient(model.parameter_count(), seed);
    model.Apply(gradient);
    ASSERT_THAT(core::Step(set.get(), {}, gradient).status(), IsOk());
  };
  step(1);
  const uint64_t generation = journal_->last()->generation();
  std::unique_ptr<core::Reading> early = *core::Read(set.get(), core::FullReadRequest());
  std::unique_ptr<core::Reading> waiting = *core::Read(set.get(), core::FullReadRequest());
  step(2);
  ASSERT_THAT(Await([&](core::Then<absl::Status> done) { set->Checkpoint(std::nullopt, std::move(done)); }), IsOk());
  step(3);
  EXPECT_TRUE(absl::IsAborted(Await([&](core::Then<absl::Status> done) {
    journal_->last()->Checkpoint(std::move(early), set->Describe(), generation, std::move(done));
  })));
  // Nor is it one that waits for another, which makes it an earlier one.
  const uint64_t now = journal_->last()->generation();
  absl::Status first;
  core::Notification first_done;
  const absl::Status second = Await([&](core::Then<absl::Status> done) {
    journal_->last()->Checkpoint(*core::Read(set.get(), core::FullReadRequest()), set->Describe(), now,
                                 [&](const absl::Status& made) {
                                   first = Unshared(made);
                                   first_done.Notify();
                                 });
    journal_->last()->Checkpoint(std::move(waiting), set->Describe(), now, std::move(done));
  });
  first_done.WaitForNotification();
  EXPECT_THAT(first, IsOk());
  EXPECT_TRUE(absl::IsAborted(second)) << second;
  step(4);
  const uint64_t incarnation = set->Describe().incarnation();

  set.reset();
  Restart();
  set = *registry_->Find("set");
  EXPECT_EQ(set->Describe().state(), v1::PARAMETER_SET_STATE_READY);
  EXPECT_EQ(set->Describe().incarnation(), incarnation);
  EXPECT_EQ(set->Describe().step(), 4);
  EXPECT_TRUE(*core::FetchState(set.get()) == model.arrays());
}

// A step that does not start from the state that it started from the first time.
TEST_F(DurableSetTest, AnotherDigestThanWasPutDownIsDamage) {
  std::shared_ptr<core::ParameterSet> set = Create();
  std::vector<std::string> digests;
  for (int step = 1; step <= 3; ++step) {
    v1::StepHeader header;
    header.set_digest_state(true);
    const core::Values gradient = core::Gradient(set->schema().parameter_count(), step);
    const absl::StatusOr<core::StepReply> reply = core::Step(set.get(), header, gradient);
    ASSERT_THAT(reply, IsOk());
    digests.push_back(reply->result.state_digest());
  }
  set.reset();
  Stop();

  const auto replay = [&] {
    StoreOptions options;
    options.directory = "/data";
    options.reserve_bytes = 64 << 10;
    options.sqlite_vfs = vfs_.name().c_str();
    const std::unique_ptr<Store> store = *Store::Open(&disk_, options);
    SetReplay only;
    EXPECT_THAT(store->Replay(server_.resources(), [&](const SetReplay& one) { only = one; }), IsOk());
    return only;
  };
  const SetReplay same = replay();
  EXPECT_THAT(same.status, IsOk());
  EXPECT_EQ(same.set, "set");
  EXPECT_EQ(same.base_step, 0);
  EXPECT_EQ(same.last_digest, digests[2]);
  ASSERT_EQ(same.steps.size(), 3);
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(same.steps[step].step, step + 1);
    EXPECT_EQ(same.steps[step].digest, digests[step]);
    // Nothing was put down after the last one.
    EXPECT_EQ(same.steps[step].is_checked, step < 2);
  }

  {
    const std::unique_ptr<Catalog> catalog = *Catalog::Open(&disk_, "/data", false, vfs_.name().c_str());
    int64_t last = 0;
    StoredRecord record;
    ASSERT_THAT(catalog->ForEachRecord(1,
                                       [&](int64_t number, const absl::StatusOr<StoredRecord>& one) {
                                         last = number;
                                         record = *one;
                                         return absl::OkStatus();
                                       }),
                IsOk());
    record.mutable_committed()->set_previous_digest(digests[0]);
    ASSERT_THAT(catalog->Begin(), IsOk());
    ASSERT_THAT(catalog->ReplaceRecord(1, last, record), IsOk());
    ASSERT_THAT(catalog->Commit(), IsOk());
  }
  const SetReplay other = replay();
  EXPECT_EQ(other.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(other.status.message()), ::testing::StartsWith("before step 3: expected the state digest "));
  EXPECT_EQ(other.steps.size(), 2);
  warnings_are_failures_ = false;
  Start();
  EXPECT_EQ((*registry_->Find("set"))->Describe().state(), v1::PARAMETER_SET_STATE_POISONED);
}

// The base knows the id of the write that it is older than: the write is made again all the same.
TEST_F(DurableSetTest, AWriteBehindACheckpointThatWasReadBeforeItIsMadeAgain) {
  std::shared_ptr<core::ParameterSet> set = Create();
  const uint64_t generation = journal_->last()->generation();
  std::unique_ptr<core::Reading> before = *core::Read(set.get(), core::FullReadRequest());
  core::Arrays written = *core::FetchState(set.get());
  written.parameters = core::Gradient(static_cast<int64_t>(written.parameters.size()), 1);
  ASSERT_THAT(core::Write(set.get(), core::ParametersHeader("write"), written).status(), IsOk());
  ASSERT_THAT(Await([&](core::Then<absl::Status> done) {
                journal_->last()->Checkpoint(std::move(before), set->Describe(), generation, std::move(done));
              }),
              IsOk());
  const uint64_t incarnation = set->Describe().incarnation();

  set.reset();
  Restart();
  set = *registry_->Find("set");
  EXPECT_EQ(set->Describe().incarnation(), incarnation);
  EXPECT_TRUE(*core::FetchState(set.get()) == written);
}

struct HasDevice {
  core::LateBackend device{core::LateBackend::Slots::kApart};
};

// There all writes are staged: the state before them can be read until they are published.
class DurableSetOnADeviceTest : private HasDevice, public DurableSetTest {
 protected:
  DurableSetOnADeviceTest() : DurableSetTest(&device) {}
  ~DurableSetOnADeviceTest() override {
    Stop();
    device.AwaitIdle();
  }
};

// Without slots of optimizers a reading takes no turn but for this: it would have the state before the write.
TEST_F(DurableSetOnADeviceTest, ACheckpointBetweenAWritesBaseAndItsPublicationIsOfTheWrite) {
  v1::ParameterSetSpec spec = core::SmallSpec("set");
  for (v1::ParameterGroup& group : *spec.mutable_groups()) group.mutable_sgd();
  std::shared_ptr<core::ParameterSet> set = Create(EveryStep(), spec);
  core::Arrays written = *core::FetchState(set.get());
  ASSERT_TRUE(written.exp_avg.empty() && written.momentum_buffer.empty());
  written.parameters = core::Gradient(static_cast<int64_t>(written.parameters.size()), 1);
  written.step = 5;
  core::Notification checkpointed;
  absl::Status made;
  journal_->between() = [&] {
    journal_->between() = nullptr;
    set->Checkpoint(std::nullopt, [&](const absl::Status& status) {
      made = Unshared(status);
      checkpointed.Notify();
    });
  };
  ASSERT_THAT(core::Write(set.get(), core::FullHeader(5), written).status(), IsOk());
  checkpointed.WaitForNotification();
  EXPECT_THAT(made, IsOk());
  const uint64_t incarnation = set->Describe().incarnation();

  set.reset();
  Restart();
  set = *registry_->Find("set");
  EXPECT_EQ(set->Describe().incarnation(), incarnation);
  EXPECT_TRUE(*core::FetchState(set.get()) == written);
}

// It may take long: what it has written, others may have.
TEST_F(DurableSetTest, ACheckpointHoldsLessAndLessWhileItIsWritten) {
  checkpoint_rate_ = int64_t{1} << 20;
  Restart();
  v1::ParameterSetSpec spec = core::SmallSpec("set");
  spec.mutable_tensors(0)->clear_shape();
  spec.mutable_tensors(0)->add_shape(int64_t{4} << 20);
  v1::Durability durability;
  durability.mutable_checkpoints()->set_steps(1000);
  std::shared_ptr<core::ParameterSet> set = Create(durability, spec);
  core::Notification made;
  absl::Status status;
  set->Checkpoint(std::nullopt, [&](const absl::Status& done) {
    status = Unshared(done);
    made.Notify();
  });
  std::vector<int64_t> held;
  while (!made.HasBeenNotified()) {
    // It waits for its next piece of 4 MiB.
    if (clock_.pending() == 0) {
      std::this_thread::yield();
      continue;
    }
    held.push_back(server_.read().used());
    clock_.Advance(absl::Seconds(4));
  }
  EXPECT_THAT(status, IsOk());
  ASSERT_GE(held.size(), 10);
  EXPECT_TRUE(std::is_sorted(held.rbegin(), held.rend()));
  EXPECT_LT(held.back(), held.front() / 5);
  EXPECT_EQ(server_.read().used(), 0);
}

// The gradient was on its way when the disk became full.
TEST_F(DurableSetTest, AStepThatIsCompleteIsPutDownFromTheReserve) {
  std::shared_ptr<core::ParameterSet> set = Create();
  core::SequentialModel model(core::SmallSpec("set"));
  const core::Values gradient = core::Gradient(model.parameter_count(), 1);
  {
    core::StepDelivery complete = core::BeginStep(set.get(), core::Header("step 1", 0));
    complete.Await();
    LeaveBytes(0);
    ASSERT_THAT(core::Finish(set.get(), &complete, gradient), IsOk());
    model.Apply(gradient);
  }

  // New work is refused before it brings anything.
  const auto refused = [](const absl::Status& status) {
    return absl::IsResourceExhausted(status) && core::ReasonOf(status) == v1::ERROR_REASON_DISK_EXHAUSTED &&
           GetRetryDelay(status).has_value();
  };
  {
    core::StepDelivery step = core::BeginStep(set.get(), core::Header("step 2", 1));
    step.Await();
    EXPECT_FALSE(step.admitted());
    EXPECT_TRUE(refused(step.Take().status()));
  }
  EXPECT_TRUE(refused(core::Write(set.get(), core::ParametersHeader(), model.arrays()).status()));
  EXPECT_TRUE(refused(core::AddTensors(set.get(), core::Tensors({3})).status()));
  v1::UpdateParameterGroupRequest update;
  update.mutable_group()->set_name("slow");
  update.mutable_group()->set_learning_rate(0.5);
  update.mutable_update_mask()->add_paths("learning_rate");
  EXPECT_TRUE(refused(core::Update(set.get(), update).status()));
  v1::CreateParameterSetRequest create;
  *create.mutable_spec() = core::SmallSpec("other");
  *create.mutable_spec()->mutable_durability() = EveryStep();
  EXPECT_TRUE(refused(registry_->Create(create).status()));
  // Whoever asks again is told, and what is there can be read.
  EXPECT_TRUE(core::Step(set.get(), core::Header("step 1", 0), gradient)->result.replayed());
  EXPECT_TRUE(*core::FetchState(set.get()) == model.arrays());

  LeaveRoom();
  const core::Values next = core::Gradient(model.parameter_count(), 2);
  absl::Status status;
  while (refused(status = core::Step(set.get(), core::Header("step 2", 1), next).status())) std::this_thread::yield();
  ASSERT_THAT(status, IsOk());
  model.Apply(next);
  // It is kept again.
  LeaveBytes(0);
  const core::Values last = core::Gradient(model.parameter_count(), 3);
  for (int i = 0; i < 40 && (status = core::Step(set.get(), {}, last).status()).ok(); ++i) model.Apply(last);
  EXPECT_TRUE(refused(status));

  set.reset();
  LeaveRoom();
  Restart();
  EXPECT_TRUE(*core::FetchState(registry_->Find("set")->get()) == model.arrays());
}

// Or it could step until it needs one, and not be brought back.
TEST_F(DurableSetTest, ASetDoesNotGrowBeyondWhatACheckpointCanRead) {
  std::shared_ptr<core::ParameterSet> set = Create();
  core::SequentialModel model(core::SmallSpec("set"));
  EXPECT_THAT(core::AddTensors(set.get(), core::Tensors({int64_t{6} << 20})),
              core::FailsWith(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_TOO_LARGE));
  const core::Values gradient = core::Gradient(model.parameter_count(), 1);
  EXPECT_THAT(core::Step(set.get(), {}, gradient), IsOk());
}

TEST_F(DurableSetTest, ASetCanBeDeletedOnAFullDisk) {
  Create();
  LeaveBytes(0);
  EXPECT_THAT(Await([&](core::Then<absl::Status> done) {
                v1::DeleteParameterSetRequest request;
                request.set_name("set");
                registry_->Delete(request, std::move(done));
              }),
              IsOk());
  LeaveRoom();
  Restart();
  EXPECT_FALSE(registry_->Find("set").ok());
}

// A disk that stays full is not written to, nor complained of, at every step and second.
TEST_F(DurableSetTest, ACheckpointThatTheDiskIsTooFullForIsWantedAfterALongerTimeEachTime) {
  v1::Durability durability;
  durability.mutable_checkpoints()->set_steps(1);
  std::shared_ptr<core::ParameterSet> set = Create(durability);
  const core::SetJournal& journal = *journal_->last();
  const uint64_t incarnation = set->Describe().incarnation();
  const auto try_one = [&] {
    return Await([&](core::Then<absl::Status> done) { set->Checkpoint(std::nullopt, std::move(done)); });
  };
  warnings_are_failures_ = false;
  LeaveBytes(0);
  absl::Duration delay = absl::Seconds(1);
  for (int failed = 1; failed <= 10; ++failed) {
    ASSERT_TRUE(journal.WantsCheckpoint(incarnation, 1));
    EXPECT_TRUE(absl::IsResourceExhausted(try_one()));
    EXPECT_FALSE(journal.WantsCheckpoint(incarnation, 1));
    EXPECT_TRUE(absl::IsResourceExhausted(try_one())) << "one that is asked for is tried";
    EXPECT_EQ(warnings_, failed);
    clock_.Advance(delay - absl::Nanoseconds(1));
    EXPECT_FALSE(journal.WantsCheckpoint(incarnation, 1));
    clock_.Advance(absl::Nanoseconds(1));
    delay = std::min(2 * delay, absl::Minutes(1));
  }
  EXPECT_EQ(delay, absl::Minutes(1));
  EXPECT_TRUE(absl::IsResourceExhausted(try_one()));
  LeaveRoom();
  EXPECT_THAT(try_one(), IsOk());
  EXPECT_TRUE(journal.WantsCheckpoint(incarnation, 1));
}

}  // namespace
}  // namespace adamant::store
