// A set's journal that has another one do all, for tests that change some of it.
#ifndef ADAMANT_TESTS_STORE_FORWARDING_SET_JOURNAL_H_
#define ADAMANT_TESTS_STORE_FORWARDING_SET_JOURNAL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/core/journal.h"
#include "server/core/set/reading.h"

namespace adamant::store {

class ForwardingSetJournal : public core::SetJournal {
 public:
  explicit ForwardingSetJournal(std::unique_ptr<core::SetJournal> journal) : journal_(std::move(journal)) {}

  bool keeps_steps() const override { return journal_->keeps_steps(); }
  absl::Status CheckRoom() override { return journal_->CheckRoom(); }
  std::unique_ptr<Room> TakeRoom() override { return journal_->TakeRoom(); }
  std::unique_ptr<Room> TakeRoomAhead() override { return journal_->TakeRoomAhead(); }
  void AwaitCheckpoint(core::Then<absl::Status> done) override { journal_->AwaitCheckpoint(std::move(done)); }
  void CommitStep(std::unique_ptr<Room> room, const core::StepRecord& record, const core::BroughtElements& gradient,
                  core::Then<absl::Status> done) override {
    journal_->CommitStep(std::move(room), record, gradient, std::move(done));
  }
  void CommitWrite(std::unique_ptr<Room> room, const core::WriteRecord& record, const core::BroughtElements& parameters,
                   core::Then<absl::Status> done) override {
    journal_->CommitWrite(std::move(room), record, parameters, std::move(done));
  }
  void CommitConfiguration(const v1::ParameterSet& set, core::Then<absl::Status> done) override {
    journal_->CommitConfiguration(set, std::move(done));
  }
  void CommitGrowth(const core::GrowthRecord& record, std::shared_ptr<const core::Schema> schema,
                    core::Then<absl::Status> done) override {
    journal_->CommitGrowth(record, std::move(schema), std::move(done));
  }
  void CommitBase(const core::BaseRecord& record, const core::BlockList& parameters,
                  absl::Span<const core::BlockList> slots, const v1::ParameterSet& set,
                  core::Then<absl::Status> done) override {
    journal_->CommitBase(record, parameters, slots, set, std::move(done));
  }
  void CommitDelete(core::Then<absl::Status> done) override { journal_->CommitDelete(std::move(done)); }
  bool WantsCheckpoint(uint64_t incarnation, int64_t step) const override {
    return journal_->WantsCheckpoint(incarnation, step);
  }
  uint64_t generation() const override { return journal_->generation(); }
  void Checkpoint(std::unique_ptr<core::Reading> state, const v1::ParameterSet& set, uint64_t generation,
                  core::Then<absl::Status> done) override {
    journal_->Checkpoint(std::move(state), set, generation, std::move(done));
  }
  std::vector<v1::Checkpoint> ListCheckpoints() const override { return journal_->ListCheckpoints(); }
  absl::StatusOr<std::unique_ptr<core::StoredState>> OpenCheckpoint(uint64_t incarnation, int64_t step) override {
    return journal_->OpenCheckpoint(incarnation, step);
  }
  void Finish(const std::vector<core::RememberedStep>& remembered, core::Then<absl::Status> done) override {
    journal_->Finish(remembered, std::move(done));
  }
  void NoteWrite(const v1::WriteHeader& header) override { journal_->NoteWrite(header); }
  std::optional<int64_t> DurableStep(uint64_t incarnation, int64_t step) const override {
    return journal_->DurableStep(incarnation, step);
  }
  void Describe(v1::ParameterSet* set) const override { journal_->Describe(set); }

 private:
  const std::unique_ptr<core::SetJournal> journal_;
};

}  // namespace adamant::store

#endif  // ADAMANT_TESTS_STORE_FORWARDING_SET_JOURNAL_H_
