// A write, staged or direct, from its header to its commit.
#include "server/core/write_attempt.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/error/error.h"
#include "server/core/attempt_life.h"
#include "server/core/parameter_set.h"

namespace adamant::core {
namespace {

constexpr int64_t kMaxStep = int64_t{1} << 53;

// What may be written: a later step must be able to compute with it without an overflow.
struct SlotLimits {
  const char* slot;
  float lowest;
  float highest;
};
constexpr SlotLimits kLimits[] = {
    {"SLOT_PARAMETER", -0x1p95f, 0x1p95f}, {"SLOT_EXP_AVG", -0x1p64f, 0x1p64f}, {"SLOT_EXP_AVG_SQ", 0.0f, 0x1p127f}};

// Position in WriteAttempt::slots_, or -1.
int SlotIndex(v1::Slot slot) {
  switch (slot) {
    case v1::SLOT_UNSPECIFIED:
    case v1::SLOT_PARAMETER:
      return 0;
    case v1::SLOT_EXP_AVG:
      return 1;
    case v1::SLOT_EXP_AVG_SQ:
      return 2;
    default:
      return -1;
  }
}

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
  return absl::OkStatus();
}

// `status`, an error without a field, with the slot that it is about in its message.
absl::Status OfSlot(size_t index, const absl::Status& status) {
  return Error(status.code(), absl::StrCat(status.message(), " in ", kLimits[index].slot), GetErrorDetail(status));
}

absl::Status BadValue(const Schema& schema, v1::Slot slot, int32_t tensor, int64_t offset, float value) {
  const SlotLimits& limits = kLimits[SlotIndex(slot)];
  v1::ErrorDetail detail;
  detail.set_reason(v1::ERROR_REASON_VALUE_OUT_OF_RANGE);
  detail.set_tensor(tensor);
  detail.set_offset(offset);
  return Error(absl::StatusCode::kInvalidArgument,
               ExpectedGot(absl::StrCat("values in [", Spelled(limits.lowest), ", ", Spelled(limits.highest), "] for ",
                                        limits.slot),
                           absl::StrCat(Spelled(value), " at offset ", offset, " of tensor ", tensor, " (",
                                        Quoted(schema.tensors()[tensor].name), ")")),
               detail);
}

}  // namespace

WriteAttempt::WriteAttempt(std::shared_ptr<ParameterSet> set, const v1::WriteHeader& header,
                           std::shared_ptr<WriteListener> listener)
    : set_(std::move(set)), header_(header), listener_(std::move(listener)) {}

WriteAttempt::~WriteAttempt() {
  LetNextBegin();
  MutexLock lock(&set_->mutex_);
  set_->writes_.erase(this);
}

void WriteAttempt::LetNextBegin() {
  std::shared_ptr<WriteAttempt> next;
  {
    MutexLock lock(&set_->mutex_);
    if (set_->next_write_ == this) set_->next_write_ = nullptr;
    if (set_->write_ != this) return;
    set_->ReturnBlocks(this);
    if (set_->next_write_ != nullptr) next = set_->next_write_->weak_from_this().lock();
    // At once, so that nobody comes between the two.
    set_->write_ = next.get();
    set_->next_write_ = nullptr;
  }
  if (next == nullptr) return;
  // Whoever lets go of an attempt may hold locks.
  set_->resources_.clock->Schedule(absl::ZeroDuration(), [next] { next->set_->BeginWrite(next); });
}

absl::Status WriteAttempt::Fail(absl::Status status) {
  Cancel();
  LetNextBegin();
  return status;
}

void WriteAttempt::Start() { set_->BeginWrite(shared_from_this()); }

absl::Status WriteAttempt::Add(v1::Slot slot, int32_t tensor, int64_t offset, int64_t count, ChunkSource copy) {
  if (kind_ == Kind::kReplay) return absl::OkStatus();
  const int index = SlotIndex(slot);
  if (index < 0 || !slots_[index].has_value()) {
    return Fail(InvalidField("slot",
                             header_.mode() == v1::WRITE_MODE_FULL
                                 ? "SLOT_PARAMETER, SLOT_EXP_AVG or SLOT_EXP_AVG_SQ with WRITE_MODE_FULL"
                                 : "SLOT_PARAMETER with WRITE_MODE_PARAMETERS",
                             EnumName(slot)));
  }
  const SlotLimits& limits = kLimits[index];
  int64_t position = offset;
  absl::optional<std::pair<int64_t, float>> bad;
  absl::Status status = slots_[index]->Add(tensor, offset, count, [&](float* to, int64_t n) {
    copy(to, n);
    for (int64_t i = 0; i < n && !bad.has_value(); ++i) {
      // So written that a NaN is out of range.
      if (!(to[i] >= limits.lowest && to[i] <= limits.highest)) bad.emplace(position + i, to[i]);
    }
    position += n;
  });
  if (status.ok() && bad.has_value()) status = BadValue(*set_->schema_, slot, tensor, bad->first, bad->second);
  return status.ok() ? status : Fail(status);
}

absl::Status WriteAttempt::CheckComplete() const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].has_value()) continue;
    if (absl::Status status = slots_[i]->CheckComplete(); !status.ok()) return OfSlot(i, status);
  }
  return absl::OkStatus();
}

absl::Status WriteAttempt::Complete() {
  if (absl::Status status = CheckComplete(); !status.ok()) return Fail(status);
  if (!set_->SetComplete(this)) return absl::OkStatus();
  set_->turns_->Enqueue(
      [set = set_, attempt = shared_from_this()](const TurnQueue::Turn& /*turn*/) { set->WriteCommitTurn(attempt); });
  return absl::OkStatus();
}

void WriteAttempt::Cancel() { set_->Withdraw(this); }

std::shared_ptr<WriteAttempt> ParameterSet::NewWrite(const v1::WriteHeader& header,
                                                     std::shared_ptr<WriteListener> listener) {
  // Not std::make_shared: the constructor is private.
  return std::shared_ptr<WriteAttempt>(new WriteAttempt(shared_from_this(), header, std::move(listener)));
}

void ParameterSet::BeginWrite(const std::shared_ptr<WriteAttempt>& attempt) {
  using Kind = WriteAttempt::Kind;
  std::vector<std::shared_ptr<WriteAttempt>> older;
  absl::Status superseded;
  Kind kind = Kind::kUndecided;
  absl::Status status = ValidateHeader(attempt->header_);
  if (status.ok()) {
    MutexLock lock(&mutex_);
    if (attempt->state_ != WriteAttempt::State::kWaiting) return;
    status = CheckWrite(attempt.get(), &older);
    if (status.ok()) writes_.insert(attempt.get());
    kind = attempt->kind_;
    superseded = MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_SUPERSEDED,
                           absl::StrCat("a newer attempt of ", Quoted(attempt->header_.request_id()), " took over"));
  }
  if (!status.ok()) {
    FailWrite(attempt.get(), std::move(status));
    return;
  }
  switch (kind) {
    case Kind::kUndecided:
      for (const std::shared_ptr<WriteAttempt>& one : older) End(one.get(), superseded, Ending::kUnlessComplete);
      break;
    case Kind::kReplay:
      // It may have waited for its turn to write, and does not need it any more.
      attempt->LetNextBegin();
      SetAdmitted(attempt.get());
      break;
    case Kind::kDirect:
      turns_->Enqueue(
          [self = shared_from_this(), attempt](const TurnQueue::Turn& /*turn*/) { self->DirectWriteTurn(attempt); });
      break;
    case Kind::kStaged:
      if (IsSmall()) {
        TakeStaging(attempt, Grant());
      } else {
        const Budget::WaitId wait = resources_.inflight->Reserve(
            StagingBytes(), resources_.admission_wait,
            [this, attempt](absl::StatusOr<Grant> grant) { TakeStaging(attempt, std::move(grant)); });
        SetWait(attempt.get(), wait);
      }
      break;
  }
}

// Says what kind of write it is, and makes it the write under way. It stays undecided if it has to wait for others,
// which it supersedes: those come to `older`, to be destroyed outside of the mutex.
absl::Status ParameterSet::CheckWrite(WriteAttempt* attempt, std::vector<std::shared_ptr<WriteAttempt>>* older) {
  const v1::WriteHeader& header = attempt->header_;
  if (absl::Status status = CheckExists(); !status.ok()) return status;
  // Not when what it wrote is lost: then it is to be written again.
  if (!header.request_id().empty() && header.request_id() == write_request_id_ && CheckReady().ok()) {
    if (HashHeader(header) != write_header_hash_) {
      return MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                       ExpectedGot("a new one, or the header that it was applied with",
                                   absl::StrCat(Quoted(header.request_id()), " with another header")),
                       "header.request_id");
    }
    attempt->kind_ = WriteAttempt::Kind::kReplay;
    return absl::OkStatus();
  }
  absl::Status status;
  if (header.has_incarnation()) status = CheckIncarnation(header.incarnation(), "header.incarnation");
  if (status.ok() && header.has_schema_fingerprint()) {
    status = CheckFingerprint(header.schema_fingerprint(), "header.schema_fingerprint");
  }
  if (!status.ok()) return status;
  if (write_ != nullptr && write_ != attempt) return WaitToWrite(attempt, older);

  const bool full = header.mode() == v1::WRITE_MODE_FULL;
  if (!full && state_ == v1::PARAMETER_SET_STATE_POISONED) return CheckReady();
  if (!full && !moments_valid_) {
    return MakeError(absl::StatusCode::kFailedPrecondition, v1::ERROR_REASON_UNINITIALIZED,
                     "a full write broke off and took the moments with it: the set awaits a full write");
  }
  const bool direct = full || state_ == v1::PARAMETER_SET_STATE_UNINITIALIZED;
  attempt->kind_ = direct ? WriteAttempt::Kind::kDirect : WriteAttempt::Kind::kStaged;
  write_ = attempt;
  return absl::OkStatus();
}

// Makes `attempt` the one that writes next, if those before it are over already or of the same request.
absl::Status ParameterSet::WaitToWrite(WriteAttempt* attempt, std::vector<std::shared_ptr<WriteAttempt>>* older) {
  const std::string& request_id = attempt->header_.request_id();
  for (WriteAttempt* one : {write_, next_write_}) {
    if (one == nullptr || one->state_ == WriteAttempt::State::kOver) continue;
    if (request_id.empty() || one->header_.request_id() != request_id) {
      return MakeError(absl::StatusCode::kAborted, v1::ERROR_REASON_WRITE_IN_PROGRESS, "another write is under way");
    }
    if (HashHeader(one->header_) != HashHeader(attempt->header_)) {
      return MakeError(absl::StatusCode::kAlreadyExists, v1::ERROR_REASON_REQUEST_ID_REUSED,
                       ExpectedGot("a new one, or the header that it is under way with",
                                   absl::StrCat(Quoted(request_id), " with another header")),
                       "header.request_id");
    }
    if (std::shared_ptr<WriteAttempt> alive = one->weak_from_this().lock()) older->push_back(std::move(alive));
  }
  next_write_ = attempt;
  return absl::OkStatus();
}

// What a direct write takes out of the set, and what puts it back.
struct ParameterSet::TakenState {
  BlockList parameters;
  BlockList exp_avg;
  BlockList exp_avg_sq;
  bool published;
  v1::ParameterSetState state;
  bool moments_valid;
};

void ParameterSet::DirectWriteTurn(const std::shared_ptr<WriteAttempt>& attempt) {
  const bool full = attempt->header_.mode() == v1::WRITE_MODE_FULL;
  TakenState taken;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    if (attempt->state_ != WriteAttempt::State::kWaiting) return;
    status = CheckExists();
    if (status.ok()) taken = TakeState(full);
  }
  if (!status.ok()) {
    FailWrite(attempt.get(), std::move(status));
    return;
  }
  // Without the mutex: where readers hold the state, other memory may have to be mapped, which takes long.
  absl::StatusOr<BlockList> parameters = ReplaceHeld(taken.parameters);
  absl::StatusOr<BlockList> exp_avg = ReplaceHeld(taken.exp_avg);
  absl::StatusOr<BlockList> exp_avg_sq = ReplaceHeld(taken.exp_avg_sq);
  for (const absl::StatusOr<BlockList>* blocks : {&parameters, &exp_avg, &exp_avg_sq}) {
    if (blocks->ok()) continue;
    {
      MutexLock lock(&mutex_);
      PutBack(std::move(taken));
    }
    FailWrite(attempt.get(), blocks->status());
    return;
  }
  taken = {};  // or it would count as a holder
  attempt->slots_[0].emplace(schema_, *std::move(parameters), nullptr);
  if (full) {
    attempt->slots_[1].emplace(schema_, *std::move(exp_avg), nullptr);
    attempt->slots_[2].emplace(schema_, *std::move(exp_avg_sq), nullptr);
  }
  SetAdmitted(attempt.get());
}

// The set is UNINITIALIZED from here on.
ParameterSet::TakenState ParameterSet::TakeState(bool with_moments) {
  TakenState taken;
  taken.published = snapshot_ != nullptr;
  taken.state = state_;
  taken.moments_valid = moments_valid_;
  if (taken.published) {
    taken.parameters = snapshot_->blocks();
    snapshot_.reset();  // or it would count as a holder
  } else {
    taken.parameters = std::move(unpublished_);
  }
  if (with_moments) {
    taken.exp_avg = std::move(exp_avg_);
    taken.exp_avg_sq = std::move(exp_avg_sq_);
    moments_valid_ = false;
  }
  state_ = v1::PARAMETER_SET_STATE_UNINITIALIZED;
  return taken;
}

void ParameterSet::PutBack(TakenState taken) {
  if (taken.published) {
    snapshot_ = std::make_shared<const Snapshot>(incarnation_, step_, std::move(taken.parameters));
  } else {
    unpublished_ = std::move(taken.parameters);
  }
  if (!taken.exp_avg.empty()) {
    exp_avg_ = std::move(taken.exp_avg);
    exp_avg_sq_ = std::move(taken.exp_avg_sq);
  }
  moments_valid_ = taken.moments_valid;
  state_ = taken.state;
}

// A direct write broke off: the set keeps its memory, and stays as it is, UNINITIALIZED.
void ParameterSet::ReturnBlocks(WriteAttempt* attempt) {
  if (attempt->kind_ != WriteAttempt::Kind::kDirect || !attempt->slots_[0].has_value()) return;
  unpublished_ = attempt->slots_[0]->TakeBlocks();
  if (attempt->slots_[1].has_value()) {
    exp_avg_ = attempt->slots_[1]->TakeBlocks();
    exp_avg_sq_ = attempt->slots_[2]->TakeBlocks();
  }
  for (absl::optional<Staging>& slot : attempt->slots_) slot.reset();
}

void ParameterSet::TakeStaging(const std::shared_ptr<WriteAttempt>& attempt, absl::StatusOr<Grant> grant) {
  absl::Status status = grant.status();
  absl::StatusOr<BlockList> blocks;
  if (status.ok()) {
    blocks = resources_.pool->Take(schema_->flat_size());
    status = blocks.status();
  }
  if (!status.ok()) {
    FailWrite(attempt.get(), std::move(status));
    return;
  }
  attempt->slots_[0].emplace(schema_, *std::move(blocks), nullptr);
  attempt->grant_ = *std::move(grant);
  SetAdmitted(attempt.get());
}

void ParameterSet::FailWrite(WriteAttempt* attempt, absl::Status status) {
  attempt->LetNextBegin();
  End(attempt, std::move(status));
}

void ParameterSet::WriteCommitTurn(const std::shared_ptr<WriteAttempt>& attempt) {
  const v1::WriteHeader& header = attempt->header_;
  std::shared_ptr<const Snapshot> before;  // destroyed outside of the mutex
  v1::WriteTensorsResponse response;
  absl::Status status;
  absl::Status rewritten;
  {
    MutexLock lock(&mutex_);
    status = CheckExists();
    if (status.ok() && attempt->kind_ == WriteAttempt::Kind::kReplay) {
      response.set_replayed(true);
      status = CheckReady();
      if (status.ok() && header.request_id() != write_request_id_) {
        status = Rewritten();
      }
    } else if (status.ok()) {
      if (attempt->kind_ == WriteAttempt::Kind::kStaged) status = CheckReady();
      if (status.ok()) {
        incarnation_ = DrawIncarnation();
        if (header.mode() == v1::WRITE_MODE_FULL) {
          step_ = header.step();
          exp_avg_ = attempt->slots_[1]->TakeBlocks();
          exp_avg_sq_ = attempt->slots_[2]->TakeBlocks();
          moments_valid_ = true;
        }
        before = std::move(snapshot_);
        snapshot_ = std::make_shared<const Snapshot>(incarnation_, step_, attempt->slots_[0]->TakeBlocks());
        state_ = v1::PARAMETER_SET_STATE_READY;
        replay_.Clear();
        write_request_id_ = header.request_id();
        write_header_hash_ = HashHeader(header);
        for (absl::optional<Staging>& slot : attempt->slots_) slot.reset();
        rewritten = Rewritten();
      }
    }
    response.set_incarnation(incarnation_);
    response.set_step(step_);
  }
  if (!status.ok()) {
    FailWrite(attempt.get(), std::move(status));
    return;
  }
  attempt->LetNextBegin();
  if (!response.replayed()) EndLate(rewritten);
  End(attempt.get(), std::move(response));
}

}  // namespace adamant::core
