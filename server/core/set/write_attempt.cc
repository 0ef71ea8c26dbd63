#include "server/core/set/write_attempt.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/set/checkpointing.h"
#include "server/core/set/requests.h"
#include "server/core/set/round_turn.h"
#include "server/core/set/set_rep.h"
#include "server/core/set/step_attempt.h"
#include "server/core/set/write_lane.h"
#include "server/core/spec/slots.h"

namespace adamant::core {
namespace {

absl::Status ValidateHeader(const v1::WriteHeader& header) {
  if (!header.request_id().empty()) {
    if (absl::Status status = ValidateRequestId(header.request_id(), "header.request_id"); !status.ok()) return status;
  }
  if (header.mode() != v1::WRITE_MODE_PARAMETERS && header.mode() != v1::WRITE_MODE_FULL) {
    return InvalidField("header.mode", "WRITE_MODE_PARAMETERS or WRITE_MODE_FULL", EnumName(header.mode()));
  }
  const bool full = header.mode() == v1::WRITE_MODE_FULL;
  if (!full && header.has_step()) {
    return InvalidField("header.step", "none with WRITE_MODE_PARAMETERS", absl::StrCat(header.step()));
  }
  if (full && !header.has_step()) return InvalidField("header.step", "one with WRITE_MODE_FULL", "none");
  if (full && (header.step() < 0 || header.step() > kMaxStep)) {
    return InvalidField("header.step", absl::StrCat("[0, ", kMaxStep, "]"), absl::StrCat(header.step()));
  }
  if (!full && !header.update_counts().empty()) {
    return InvalidField("header.update_counts", "none with WRITE_MODE_PARAMETERS",
                        absl::StrCat(header.update_counts_size()));
  }
  if (full && !header.tensors().empty()) {
    return InvalidField("header.tensors", "none with WRITE_MODE_FULL", absl::StrCat(header.tensors_size()));
  }
  return absl::OkStatus();
}

// The tensors that `header`, a valid one, brings to `set`.
absl::StatusOr<std::shared_ptr<const TensorSelection>> SelectTensors(const SetRep& set, const v1::WriteHeader& header)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(set.mutex) {
  const auto tensors = static_cast<int>(set.schema->tensors().size());
  if (!header.update_counts().empty() && header.update_counts_size() != tensors) {
    return InvalidField("header.update_counts", absl::StrCat("none, or one for each of ", tensors, " tensors"),
                        absl::StrCat(header.update_counts_size()));
  }
  for (int i = 0; i < header.update_counts_size(); ++i) {
    const int64_t count = header.update_counts(i);
    if (count >= 0 && count <= header.step()) continue;
    return InvalidField(absl::StrCat("header.update_counts[", i, "]"),
                        absl::StrCat("[0, ", header.step(), "], up to the step"), absl::StrCat(count));
  }
  if (header.tensors().empty()) return std::make_shared<const TensorSelection>(set.schema);
  absl::StatusOr<std::vector<bool>> selected = SelectByIndex(*set.schema, header.tensors(), "header.tensors");
  if (!selected.ok()) return selected.status();
  return std::make_shared<const TensorSelection>(set.schema, *std::move(selected));
}

// Says what kind of write `attempt`, which brings `selection`, is, and makes it the write under way unless it is a
// repeated one. It stays undecided if it has to wait for others, which it supersedes: those come to `older`, to be
// destroyed outside of the mutex.
absl::StatusOr<WriteKind> DecideOn(WriteAttempt* attempt, const TensorSelection& selection, SetRep* set,
                                   WriteLane::Attempts* older) ABSL_EXCLUSIVE_LOCKS_REQUIRED(set->mutex) {
  const v1::WriteHeader& header = attempt->header();
  if (absl::Status status = set->lifecycle.CheckExists(); !status.ok()) return status;
  absl::StatusOr<bool> applied = set->requests.IsApplied(header);
  if (!applied.ok()) return applied.status();
  if (*applied) return WriteKind::kReplay;
  if (absl::Status status = set->lifecycle.CheckDemands(header); !status.ok()) return status;
  if (absl::Status status = set->resources.backend->CheckWorking(); !status.ok()) return status;
  if (set->journal != nullptr) {
    if (absl::Status status = set->journal->CheckRoom(); !status.ok()) return status;
  }
  if (set->writes.IsTakenFrom(attempt)) {
    absl::StatusOr<WriteLane::Attempts> superseded = set->writes.WaitBehind(attempt);
    if (!superseded.ok()) return superseded.status();
    *older = *std::move(superseded);
    return WriteKind::kUndecided;
  }
  const bool full = header.mode() == v1::WRITE_MODE_FULL;
  if (!full) {
    if (absl::Status status = set->lifecycle.CheckNotPoisoned(); !status.ok()) return status;
    if (!set->lifecycle.slots_valid()) {
      return set->lifecycle.MakeError(
          absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED,
          "a full write broke off and took the moments with it: the set awaits a full write");
    }
    // Not before the others: a write under way may be about to bring the rest.
    if (!selection.all() && set->lifecycle.state() == v1::PARAMETER_SET_STATE_UNINITIALIZED) {
      return InvalidField("header.tensors", "all tensors, in a set that awaits its first write",
                          absl::StrCat(header.tensors_size(), " of ", selection.sizes().size()));
    }
  }
  set->writes.Take(attempt);
  const bool direct =
      set->resources.backend->on_host() && (full || set->lifecycle.state() == v1::PARAMETER_SET_STATE_UNINITIALIZED);
  return direct ? WriteKind::kDirect : WriteKind::kStaged;
}

// `status`, an error without a field, with the slot that it is about in its message.
absl::Status OfSlot(v1::Slot slot, const absl::Status& status) {
  return Error(status.code(), absl::StrCat(status.message(), " in ", v1::Slot_Name(slot)), GetErrorDetail(status));
}

absl::Status BadValue(const Schema& schema, const SlotInfo& info, int32_t tensor, int64_t offset, float value) {
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_VALUE_OUT_OF_RANGE);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  return Error(absl::StatusCode::kInvalidArgument,
               ExpectedGot(absl::StrCat("values in [", Spelled(info.lowest), ", ", Spelled(info.highest), "] for ",
                                        v1::Slot_Name(info.slot)),
                           absl::StrCat(Spelled(value), " at offset ", offset, " of tensor ", tensor, " (",
                                        Quoted(schema.tensors()[tensor].name), ")")),
               detail);
}

}  // namespace

WriteAttempt::WriteAttempt(std::shared_ptr<SetRep> set, const v1::WriteHeader& header,
                           std::shared_ptr<WriteListener> listener)
    : Attempt(set->resources.lender, std::move(listener)), set_(std::move(set)), header_(header) {}

WriteAttempt::~WriteAttempt() {
  LetNextBegin();
  MutexLock lock(&set_->mutex);
  set_->writes.Remove(this);
}

const kernels::KernelTable& WriteAttempt::host_kernels() const { return set_->resources.backend->host_kernels(); }

void WriteAttempt::Start() {
  WriteLane::Attempts older;
  absl::Status superseded;
  // Of this call: one that is undecided may have been called again, from elsewhere, before this one has returned.
  WriteKind decided = WriteKind::kUndecided;
  absl::Status status = ValidateHeader(header_);
  if (status.ok()) {
    MutexLock lock(&set_->mutex);
    if (state() != State::kWaiting) return;
    absl::StatusOr<std::shared_ptr<const TensorSelection>> selection = SelectTensors(*set_, header_);
    status = selection.status();
    if (status.ok()) {
      const absl::StatusOr<WriteKind> kind = DecideOn(this, **selection, set_.get(), &older);
      status = kind.status();
      if (status.ok()) decided = *kind;
    }
    if (status.ok()) {
      kind_ = decided;
      selection_ = *std::move(selection);
      set_->writes.Add(this);
    }
    superseded =
        set_->lifecycle.MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                                  absl::StrCat("a newer attempt of ", Quoted(header_.request_id()), " took over"));
  }
  if (!status.ok()) {
    Fail(std::move(status));
    return;
  }
  switch (decided) {
    case WriteKind::kUndecided:
      for (const std::shared_ptr<WriteAttempt>& one : older) one->EndUnlessComplete(superseded);
      break;
    case WriteKind::kReplay:
      // It may have waited for the lane, and does not need it any more.
      LetNextBegin();
      Admit();
      break;
    case WriteKind::kDirect:
      set_->turns->Enqueue([self = shared_from_this()](TurnQueue::Turn turn) { self->TakeState(std::move(turn)); });
      break;
    case WriteKind::kStaged:
      AwaitLoan({});
      break;
  }
}

void WriteAttempt::AwaitLoan(std::vector<BlockList> lent) {
  const Resources& resources = set_->resources;
  const int64_t elements = selection_->block_elements();
  const int64_t arrays = full() ? 1 + static_cast<int64_t>(set_->slots.size()) : 1;
  if (static_cast<int64_t>(lent.size()) == arrays) {
    AwaitContents(std::move(lent));
    return;
  }
  // The call pays for one small array.
  const int64_t paid_arrays = IsSmall(elements) ? arrays - 1 : arrays;
  Budget* const budget = lent.empty() && paid_arrays > 0 ? resources.inflight : nullptr;
  SetWait(resources.lender->Borrow(
      budget, paid_arrays * StagingBytes(*selection_), elements,
      lent.empty() ? resources.admission_wait : absl::InfiniteDuration(),
      [self = shared_from_this(), lent = std::move(lent)](absl::StatusOr<Lender::Loan> loan) mutable {
        self->Lent(std::move(lent), std::move(loan));
      }));
}

void WriteAttempt::Lent(std::vector<BlockList> lent, absl::StatusOr<Lender::Loan> loan) {
  if (!loan.ok()) {
    Fail(std::move(loan).status());
    return;
  }
  if (over()) return;
  if (lent.empty()) grant_ = std::move(loan->grant);
  lent.push_back(selection_->Spread(std::move(loan->blocks)));
  AwaitLoan(std::move(lent));
}

// What a direct write takes out of its set.
struct WriteAttempt::TakenState {
  Lifecycle lifecycle;
  bool published;
  BlockList parameters;
};

void WriteAttempt::TakeState(TurnQueue::Turn turn) {
  if (state() != State::kWaiting) return;
  std::optional<TakenState> taken;
  absl::Status status;
  absl::Status not_ready;
  std::shared_ptr<Round> round;
  {
    MutexLock lock(&set_->mutex);
    status = set_->lifecycle.CheckExists();
    if (status.ok() && &selection_->schema() != set_->schema.get()) status = set_->lifecycle.Rewritten();
    if (status.ok()) {
      const bool published = set_->snapshot != nullptr;
      BlockList parameters = std::move(set_->unpublished);
      if (published) parameters = set_->snapshot->blocks();
      taken = {set_->lifecycle, published, std::move(parameters)};
      set_->lifecycle.BeginRewrite(full());
      set_->snapshot.reset();  // or it would count as a holder
      not_ready = set_->lifecycle.CheckReady();
      round = TakeRound(set_.get());
    }
  }
  AbandonRound(set_, round, not_ready);
  if (!status.ok()) {
    Fail(std::move(status));
    return;
  }
  // Other blocks in place of those that readers, who have paid for that, hold.
  std::vector<size_t> held;
  int64_t elements = 0;
  for (size_t i = 0; i < taken->parameters.size(); ++i) {
    if (taken->parameters[i].unique()) continue;
    held.push_back(i);
    elements += taken->parameters[i].size();
  }
  if (held.empty()) {
    AwaitContentsOfState(std::move(taken->parameters));
    return;
  }
  // All in one loan, since only the last block may be short, in the set's list as in a loan.
  set_->resources.lender->Borrow(
      /*budget=*/nullptr, 0, elements, absl::InfiniteDuration(),
      [self = shared_from_this(), taken = *std::move(taken), held = std::move(held),
       turn = std::move(turn)](absl::StatusOr<Lender::Loan> loan) mutable {
        if (!loan.ok() || self->over()) {
          self->PutBack(std::move(taken));
          self->LetNextBegin();
          if (!loan.ok()) self->End(std::move(loan).status());
          return;
        }
        for (size_t i = 0; i < held.size(); ++i) taken.parameters[held[i]] = std::move(loan->blocks[i]);
        self->AwaitContentsOfState(std::move(taken.parameters));
      });
}

void WriteAttempt::PutBack(TakenState taken) {
  MutexLock lock(&set_->mutex);
  if (taken.published) {
    set_->snapshot = std::make_shared<const Snapshot>(taken.lifecycle.incarnation(), taken.lifecycle.step(),
                                                      std::move(taken.parameters));
  } else {
    set_->unpublished = std::move(taken.parameters);
  }
  set_->lifecycle = taken.lifecycle;
}

void WriteAttempt::AwaitContentsOfState(BlockList parameters) {
  std::vector<BlockList> blocks;
  if (full()) blocks = set_->arrays->BeginLoad();
  blocks.insert(blocks.begin(), std::move(parameters));
  AwaitContents(std::move(blocks));
}

void WriteAttempt::AwaitContents(std::vector<BlockList> blocks) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    const v1::Slot slot = i == 0 ? v1::SLOT_PARAMETER : set_->slots[i - 1];
    arrivals_.push_back({slot, Staging(selection_, std::move(blocks[i]), nullptr)});
  }
  Admit();
}

absl::Status WriteAttempt::Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  if (kind_ == WriteKind::kReplay) return absl::OkStatus();
  const v1::Slot meant = slot == v1::SLOT_UNSPECIFIED ? v1::SLOT_PARAMETER : slot;
  const auto arrival = absl::c_find_if(arrivals_, [meant](const Arrival& one) { return one.slot == meant; });
  if (arrival == arrivals_.end()) {
    std::vector<v1::Slot> expected;
    for (const Arrival& one : arrivals_) expected.push_back(one.slot);
    return Refuse(
        InvalidField("slot", absl::StrCat(OneOf(expected), " with ", EnumName(header_.mode())), EnumName(slot)));
  }
  const SlotInfo& info = InfoOf(meant);
  int64_t position = offset;
  std::optional<std::pair<int64_t, float>> bad;
  absl::Status status = arrival->elements.Add(tensor, offset, count, [&](float* to, int64_t n) {
    copy(to, n);
    if (takes_any_values_) return;
    for (int64_t i = 0; i < n && !bad.has_value(); ++i) {
      // So written that a NaN is out of range.
      if (!(to[i] >= info.lowest && to[i] <= info.highest)) bad.emplace(position + i, to[i]);
    }
    position += n;
  });
  if (status.ok() && bad.has_value()) status = BadValue(selection_->schema(), info, tensor, bad->first, bad->second);
  return status.ok() ? status : Refuse(status);
}

absl::Status WriteAttempt::AddRows(v1::Slot /*slot*/, int32_t tensor, int64_t offset, int64_t row_count,
                                   RowSource /*rows*/, int64_t /*count*/, ChunkSource /*copy*/) {
  if (kind_ == WriteKind::kReplay) return absl::OkStatus();
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_MALFORMED_CHUNK);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  return Refuse(Error(absl::StatusCode::kInvalidArgument,
                      ExpectedGot("no `rows` in a write, which brings whole tensors", absl::StrCat(row_count)),
                      detail));
}

absl::Status WriteAttempt::CheckComplete() const {
  for (const Arrival& arrival : arrivals_) {
    if (absl::Status status = arrival.elements.CheckComplete(); !status.ok()) return OfSlot(arrival.slot, status);
  }
  return absl::OkStatus();
}

absl::Status WriteAttempt::Complete() {
  if (absl::Status status = CheckComplete(); !status.ok()) return Refuse(status);
  if (!MarkComplete()) return absl::OkStatus();
  set_->turns->Enqueue([self = shared_from_this()](TurnQueue::Turn turn) { self->Commit(std::move(turn)); });
  return absl::OkStatus();
}

void WriteAttempt::Commit(TurnQueue::Turn turn) {
  v1::WriteTensorsResponse response;
  absl::Status status;
  {
    MutexLock lock(&set_->mutex);
    if (kind_ == WriteKind::kReplay) {
      status = set_->lifecycle.CheckReady();
    } else if (full()) {
      status = set_->lifecycle.CheckExists();  // it heals a set that a step has poisoned meanwhile
    } else {
      status = set_->lifecycle.CheckNotPoisoned();
    }
    // Tensors were added since it began.
    if (status.ok() && &selection_->schema() != set_->schema.get()) status = set_->lifecycle.Rewritten();
    if (status.ok() && kind_ == WriteKind::kReplay && !set_->requests.MadeIncarnation(header_.request_id())) {
      status = set_->lifecycle.Rewritten();
    }
    response.set_replayed(true);
    response.set_incarnation(set_->lifecycle.incarnation());
    response.set_step(set_->lifecycle.step());
  }
  if (!status.ok()) {
    Fail(std::move(status));
  } else if (kind_ == WriteKind::kReplay) {
    LetNextBegin();
    End(std::move(response));
  } else {
    std::vector<BlockList> blocks;
    for (Arrival& arrival : arrivals_) blocks.push_back(arrival.elements.TakeBlocks());
    arrivals_.clear();
    int64_t step = header_.step();
    {
      MutexLock lock(&set_->mutex);
      if (incarnation_ == 0) incarnation_ = DrawIncarnation(&set_->random);
      if (!full()) step = set_->lifecycle.step();
    }
    auto parameters = std::make_shared<const Snapshot>(incarnation_, step, Merge(std::move(blocks.front())));
    blocks.erase(blocks.begin());
    Record(std::move(parameters), std::move(blocks), std::move(turn));
  }
}

void WriteAttempt::Record(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks,
                          TurnQueue::Turn turn) {
  SetJournal* const journal = set_->journal.get();
  if (journal == nullptr || (!full() && !journal->keeps_steps())) {
    Load(std::move(parameters), std::move(blocks), std::move(turn));
    return;
  }
  struct Recording {
    std::shared_ptr<const Snapshot> parameters;
    std::vector<BlockList> blocks;
    TurnQueue::Turn turn;
  };
  auto recording = std::make_shared<Recording>(Recording{std::move(parameters), std::move(blocks), std::move(turn)});
  Then<absl::Status> recorded = [self = shared_from_this(), recording](const absl::Status& status) {
    if (status.ok()) {
      self->Load(std::move(recording->parameters), std::move(recording->blocks), std::move(recording->turn));
    } else {
      self->GiveBack(std::move(recording->parameters), std::move(recording->blocks), status);
    }
  };
  if (full()) {
    v1::ParameterSet description;
    {
      MutexLock lock(&set_->mutex);
      description = DescribeSet(*set_);
    }
    description.set_incarnation(incarnation_);
    description.set_step(header_.step());
    description.set_state(v1::PARAMETER_SET_STATE_READY);
    journal->CommitBase({incarnation_, header_.step(), header_}, recording->parameters->blocks(), recording->blocks,
                        description, std::move(recorded));
    return;
  }
  const auto commit = [self = shared_from_this(), recording](std::unique_ptr<SetJournal::Room> room,
                                                             Then<absl::Status> done) {
    const BroughtElements brought = {&recording->parameters->blocks(), self->selection_->blocks()};
    self->set_->journal->CommitWrite(
        std::move(room), {self->header_, self->incarnation_, recording->parameters->step()}, brought, std::move(done));
  };
  if (std::unique_ptr<SetJournal::Room> room = journal->TakeRoom(); room != nullptr) {
    commit(std::move(room), std::move(recorded));
    return;
  }
  MakeRoom(set_,
           [commit, recorded = std::move(recorded)](absl::StatusOr<std::unique_ptr<SetJournal::Room>> room) mutable {
             if (room.ok()) {
               commit(*std::move(room), std::move(recorded));
             } else {
               recorded(std::move(room).status());
             }
           });
}

void WriteAttempt::GiveBack(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks,
                            const absl::Status& status) {
  if (kind_ == WriteKind::kDirect) {
    // It has the set's own, which LetNextBegin gives back.
    blocks.insert(blocks.begin(), Snapshot::Release(std::move(parameters)));
    for (size_t i = 0; i < blocks.size(); ++i) {
      const v1::Slot slot = i == 0 ? v1::SLOT_PARAMETER : set_->slots[i - 1];
      arrivals_.push_back({slot, Staging(selection_, std::move(blocks[i]), nullptr)});
    }
  }
  Fail(Unshared(status));
}

void WriteAttempt::Load(std::shared_ptr<const Snapshot> parameters, std::vector<BlockList> blocks,
                        TurnQueue::Turn turn) {
  const Snapshot& loaded = *parameters;
  set_->arrays->Load(loaded, std::move(blocks),
                     [self = shared_from_this(), parameters = std::move(parameters), turn = std::move(turn)](
                         const absl::Status& status) mutable { self->Publish(status, std::move(parameters)); });
}

BlockList WriteAttempt::Merge(BlockList brought) const {
  if (selection_->all()) return brought;
  std::shared_ptr<const Snapshot> before;
  {
    MutexLock lock(&set_->mutex);
    before = set_->snapshot;
  }
  const auto tensors = selection_->schema().tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (selection_->has(static_cast<int>(i))) continue;
    ForEachRun(tensors[i].begin, tensors[i].end, [&](int64_t block, int64_t begin, int64_t end) {
      if (!brought[block]) return;
      std::copy_n(before->blocks()[block].data() + begin, end - begin, brought[block].mutable_data() + begin);
    });
  }
  for (size_t block = 0; block < brought.size(); ++block) {
    if (!brought[block]) brought[block] = before->blocks()[block];
  }
  return brought;
}

void WriteAttempt::Publish(const absl::Status& loaded, std::shared_ptr<const Snapshot> parameters) {
  std::shared_ptr<const Snapshot> before;  // destroyed outside of the mutex, as what is next
  BlockList unpublished;
  v1::WriteTensorsResponse response;
  absl::Status poisoned;
  absl::Status rewritten;
  std::vector<std::shared_ptr<StepAttempt>> outdated;
  std::shared_ptr<Round> round;
  std::shared_ptr<const Watches> watches;
  {
    MutexLock lock(&set_->mutex);
    watches = set_->watches;
    round = TakeRound(set_.get());
    if (loaded.ok()) {
      std::optional<int64_t> step;
      if (full()) step = parameters->step();
      set_->lifecycle.Rewrite(parameters->incarnation(), step);
      before = std::exchange(set_->snapshot, std::move(parameters));
      unpublished = std::move(set_->unpublished);
      set_->requests.Rewrite(header_);
      if (full()) {
        set_->update_counts.Set(header_.step(), header_.update_counts());
        set_->work.reset();
      }
      rewritten = set_->lifecycle.Rewritten();
      outdated = set_->requests.FindOutdated();
    } else {
      set_->lifecycle.Poison();
      poisoned = set_->lifecycle.CheckReady();
      // A direct write has taken what was published before.
      if (set_->snapshot == nullptr) set_->unpublished = parameters->blocks();
    }
    response.set_incarnation(set_->lifecycle.incarnation());
    response.set_step(set_->lifecycle.step());
  }
  AbandonRound(set_, round, loaded.ok() ? rewritten : poisoned);
  if (!loaded.ok()) {
    Fail(std::move(poisoned));
    return;
  }
  if (set_->journal != nullptr && !set_->journal->keeps_steps() && !full()) set_->journal->NoteWrite(header_);
  LetNextBegin();
  for (const std::shared_ptr<StepAttempt>& attempt : outdated) attempt->EndUnlessComplete(rewritten);
  if (!watches->empty()) {
    v1::WatchParameterSetResponse event;
    event.set_incarnation(response.incarnation());
    event.set_step(response.step());
    event.mutable_written()->set_mode(header_.mode());
    Tell(*watches, std::move(event));
  }
  CheckpointInTime(set_);
  End(std::move(response));
}

absl::Status WriteAttempt::Refuse(absl::Status status) {
  Cancel();
  LetNextBegin();
  return status;
}

void WriteAttempt::Fail(absl::Status status) {
  LetNextBegin();
  End(std::move(status));
}

void WriteAttempt::LetNextBegin() {
  std::shared_ptr<WriteAttempt> next;
  {
    MutexLock lock(&set_->mutex);
    if (!set_->writes.Leave(this, &next)) return;
    if (kind_ == WriteKind::kDirect && !arrivals_.empty()) {
      std::vector<BlockList> blocks;
      for (Arrival& arrival : arrivals_) blocks.push_back(arrival.elements.TakeBlocks());
      arrivals_.clear();
      set_->unpublished = std::move(blocks.front());
      blocks.erase(blocks.begin());
      if (!blocks.empty()) set_->arrays->AbandonLoad(std::move(blocks));
    }
  }
  if (next == nullptr) return;
  // Whoever lets go of an attempt may hold locks.
  set_->resources.compute->Post([next] { next->Start(); });
}

}  // namespace adamant::core
